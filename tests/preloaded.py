"""A Python that has the frameworks imported already: scripts run in forks of it, for most of a test's time is imports.

    folder/venv/bin/python script.py --flag ...    # does what `python script.py --flag ...` does, see `interpreter`

That command is a client, which sends its arguments, folder, environment, limits and standard streams to a server. There
the script runs as __main__ in a fork; the client passes signals on and ends as the script does. The server has imported
libraries and done nothing else, so it has one thread and a fork loses none; the project's own modules are not among the
imports. What a fork cannot imitate (options of Python, variables that a library reads as it loads, a script from
outside the project) is run by a Python of its own. So is everything on other systems than Linux and where there is a
GPU, for CUDA does not outlive a fork.
"""
import marshal
import os
import resource
import signal
import socket
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
PRELOADED = ("numpy", "torch", "torch._dynamo", "torch.distributed.run", "tensorflow", "tokenizers",
             "safetensors.torch", "sklearn.metrics", "tqdm", "tensorboard.summary.writer.record_writer",
             "tensorboard.compat.proto.event_pb2", "spacy", "matplotlib.pyplot",
             "matplotlib.backends.backend_agg")
# Variables, by their beginnings, that are read once, as Python or a library loads. PYTHONPATH and OMP_NUM_THREADS are
# imitated.
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MPL", "OPENBLAS_", "MKL_")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LIMITS = sorted(number for name, number in vars(resource).items() if name.startswith("RLIMIT_"))
GONE = 250  # exit status of a client whose server is gone


# The session

def is_possible():
    """Whether scripts can run in forks on this machine."""
    return sys.platform == "linux" and not os.path.exists("/dev/nvidiactl")


def open_session(folder):
    """Prepares an empty folder for `interpreter`. What it returns is to be kept: the server ends with its owner."""
    lifeline = os.path.join(folder, "lifeline")
    os.mkfifo(lifeline)
    return open(lifeline, "r+b", buffering=0)


def interpreter(folder):
    """The path of the client, in the folder of a session, from whichever of the session's processes: the first call
    starts the server. It lies in what looks like a virtual environment that scripts/setup.sh has made."""
    import fcntl
    import shlex
    import subprocess

    python, address = os.path.join(folder, "venv", "bin", "python"), os.path.join(folder, "socket")
    with open(os.path.join(folder, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(python):
            return python
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with socket.socket(socket.AF_UNIX) as listener, open(os.path.join(folder, "log"), "wb") as log:
            listener.bind(address)
            listener.listen(64)  # clients wait in its queue while the server imports
            # not blocking: else it waits for ever where the session is gone already
            descriptors = listener.fileno(), os.open(os.path.join(folder, "lifeline"), os.O_RDONLY | os.O_NONBLOCK)
            subprocess.Popen([sys.executable, __file__, "--serve", *map(str, descriptors)], pass_fds=descriptors,
                             stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                             env={"OMP_NUM_THREADS": "1"} | environment)
            os.close(descriptors[1])
        os.makedirs(os.path.dirname(python))
        os.symlink(sys.executable, os.path.join(folder, "venv", "bin", "pip"))  # is looked for, and not used
        stamp = os.path.join(folder, "venv", "installed-requirements.txt")
        subprocess.run(f"cat requirements.txt requirements.txt | cksum > {shlex.quote(stamp)}", shell=True, check=True,
                       cwd=ROOT)
        with open(f"{python}.tmp", "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-I", "-S", __file__, address])} "$@"\n')
        os.chmod(f"{python}.tmp", 0o755)
        os.rename(f"{python}.tmp", python)
    return python


def read_at_start(environment):
    return {name: value for name, value in environment.items()
            if name.startswith(READ_AT_START) and name != "PYTHONPATH"}


# The client

def run_as_client(address, *arguments):
    """Has the server at `address` run the script, or a Python of its own, and ends as it does."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        if not arguments or not os.path.isfile(arguments[0]) or not os.path.realpath(arguments[0]).startswith(ROOT):
            raise ValueError("an option, no script, or none of ours")
        connection.connect(address)
        mask = os.umask(0)
        os.umask(mask)
        request = marshal.dumps({
            "arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "mask": mask,
            "limits": [(number, resource.getrlimit(number)) for number in LIMITS],
            "ignored": [int(number) for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]})
        socket.send_fds(connection, [len(request).to_bytes(4, "little")], [0, 1, 2])
        connection.sendall(request)
        if not connection.recv(1):
            raise ValueError("not in this environment")
    except (OSError, ValueError):
        os.execv(sys.executable, [sys.executable, *arguments])
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: connection.send(bytes([number])))
    answer = connection.recv(4, socket.MSG_WAITALL)
    code = os.waitstatus_to_exitcode(int.from_bytes(answer, "little")) if len(answer) == 4 else GONE
    if code < 0:  # killed by a signal, and so is this
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), -code)
    os._exit(code)


# The server

def serve(listener, lifeline):
    """Forks for each client until the session, which has the other end of a FIFO open, is gone. Returns, in each fork,
    what its client sent. listener, lifeline: descriptors of the socket and of the FIFO."""
    import contextlib
    import gc
    import importlib
    import select

    listener, lifeline = socket.socket(fileno=int(listener)), int(lifeline)
    at_start = read_at_start(os.environ)
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # as common.command_line.tensorflow_start_up does in every script, and in tests
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pyarrow, which pandas imports, would start one
    for name in PRELOADED:
        importlib.import_module(name)
    num_threads = len(os.listdir("/proc/self/task"))
    assert num_threads == 1, f"{num_threads} threads run after the imports, and a fork would have one of them only"
    gc.collect()
    gc.freeze()  # else each fork looks through the modules' objects, and with that copies their pages

    children = {}  # a descriptor that becomes readable as the child ends -> (its number, its client's connection)
    while True:
        clients = {connection: watch for watch, (_, connection) in children.items()}
        ready, _, _ = select.select([listener, lifeline, *children, *clients], [], [])
        if lifeline in ready:
            for watch in children:
                signal.pidfd_send_signal(watch, signal.SIGKILL)
            os._exit(0)
        for watch in children.keys() & set(ready):
            child, connection = children.pop(watch)
            with contextlib.suppress(BrokenPipeError):  # a client that was killed
                connection.sendall(os.waitpid(child, 0)[1].to_bytes(4, "little"))
            connection.close()
            os.close(watch)
        for connection in clients.keys() & set(ready):
            if clients[connection] in children:
                for number in connection.recv(16) or [signal.SIGKILL]:  # nothing to read: the client was killed
                    signal.pidfd_send_signal(clients[connection], number)
        if listener in ready:
            connection, _ = listener.accept()
            request, streams = receive(connection)
            is_ours = request is not None and read_at_start(request["environment"]) == at_start
            child = os.fork() if is_ours else None
            if child == 0:
                for other in (listener, connection, *clients):
                    other.close()
                for descriptor in (lifeline, *children):
                    os.close(descriptor)
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
            for stream in streams:
                os.close(stream)
            if child == 0:
                return request
            if child is None:
                connection.close()  # the client sees to itself
            else:
                children[os.pidfd_open(child)] = child, connection
                connection.sendall(b"!")


def receive(connection):
    """What a client sends: (its request, its three streams); of one that was killed as it sent, (None, what came)."""
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    request = connection.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL)
    return marshal.loads(request) if request else None, streams


def run_script(arguments, environment, folder, mask, limits, ignored):
    """Makes of this fork the process that a client asked for, runs its script, and ends."""
    import atexit
    import importlib.util
    import io
    import threading
    import traceback
    import types

    import numpy
    import torch

    os.setsid()
    os.chdir(folder)
    os.umask(mask)
    for number, limit in limits:
        resource.setrlimit(number, limit)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    script = os.path.realpath(arguments[0])
    sys.argv = list(arguments)
    sys.path[0:1] = [os.path.dirname(script), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    if importlib.util.find_spec("sitecustomize"):  # on PYTHONPATH, for the server found none
        import sitecustomize  # noqa: F401
    for name, descriptor in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        ours = getattr(sys, name)
        raw = open(descriptor, "wb" if descriptor else "rb", 0 if ours.write_through else -1, closefd=False)
        stream = io.TextIOWrapper(raw, ours.encoding, ours.errors, write_through=ours.write_through,
                                  line_buffering=name == "stderr" or os.isatty(descriptor))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    threads = environment.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(int(threads) if threads.isdigit() else len(os.sched_getaffinity(0)))
    for seed in (numpy.random.seed, torch.default_generator.seed):  # else all forks draw the same numbers
        seed()
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__file__ = script
    status = 0
    try:
        with open(script, encoding="utf-8") as file:
            code = compile(file.read(), script, "exec")
        exec(code, vars(module))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if status and status is not error.code:
            print(error.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exception(error.with_traceback(error.__traceback__.tb_next))  # without this file
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    # What Python does as it ends, but for freeing each object, which takes a second with so many modules.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status & 255)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        run_script(**serve(*sys.argv[2:]))
    else:
        run_as_client(*sys.argv[1:])
