"""A Python that has imported the frameworks already: scripts run in forks of it, for most of a test's time is imports.

    python tests/preloaded.py --serve SOCKET LIFELINE              # imports, then forks once for each client
    python -I -S tests/preloaded.py SOCKET script.py --flag ...    # a client: does what `python script.py --flag ...` does

A client sends its arguments, folder, environment, limits and standard streams. The script runs as __main__ in a fork of
the server, which has imported libraries and done nothing else: it has one thread, so a fork loses none. The project's own
modules are not among the imports. The client passes signals on and ends as the script does. What a fork cannot imitate
(options of Python, variables that a library reads as it loads, a script from outside the project) is run by a Python of
its own; so is everything on other systems than Linux, and where there is a GPU: CUDA does not outlive a fork.
"""
import marshal
import os
import resource
import signal
import socket
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
PRELOADED = ("numpy torch torch._dynamo torch.distributed.run tensorflow tokenizers safetensors.torch sklearn.metrics tqdm "
             "tensorboard.summary.writer.record_writer tensorboard.compat.proto.event_pb2 spacy matplotlib.pyplot").split()
# Variables, by their beginnings, that are read once, as Python or a library loads. PYTHONPATH and OMP_NUM_THREADS are
# imitated; PYTHON is the shell scripts'.
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MPL", "OPENBLAS_", "MKL_", "TF_USE_LEGACY_KERAS")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LIMITS = sorted(number for name, number in vars(resource).items() if name.startswith("RLIMIT_"))
GONE = 250  # exit status of a client whose server is gone


def is_possible():
    """Whether this machine can run scripts in forks."""
    return sys.platform == "linux" and not os.path.exists("/dev/nvidiactl")


def read_at_start(environment):
    return {name: value for name, value in environment.items()
            if name.startswith(READ_AT_START) and name not in ("PYTHON", "PYTHONPATH")}


# The client

def run_as_client(address, *arguments):
    """Runs the script as a fork of the server at `address`, or as a Python of its own, and ends as it does."""
    script = arguments[0] if arguments else ""
    connection = socket.socket(socket.AF_UNIX)
    try:
        if not os.path.realpath(script).startswith(ROOT + os.sep):
            raise ValueError("an option, no script, or not one of ours")
        connection.connect(address)
        mask = os.umask(0)
        request = marshal.dumps({
            "arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "mask": mask,
            "limits": [(number, resource.getrlimit(number)) for number in LIMITS],
            "ignored": [int(number) for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]})
        socket.send_fds(connection, [len(request).to_bytes(4, "little")], [0, 1, 2])
        connection.sendall(request)
        if not connection.recv(1):
            raise ValueError("the server cannot imitate this environment")
    except (OSError, ValueError):
        os.execv(sys.executable, [sys.executable, *arguments])
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: connection.send(bytes([number])))
    answer = connection.recv(4, socket.MSG_WAITALL)
    code = os.waitstatus_to_exitcode(int.from_bytes(answer, "little")) if len(answer) == 4 else GONE
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


# The server

def serve(address, lifeline):
    """Forks for each client at the socket `address` until the test session, which has the FIFO `lifeline` open, is gone.
    Returns, in each fork, what its client sent."""
    import contextlib
    import gc
    import importlib
    import select

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)  # before the imports: clients wait in its queue
    lifeline = os.open(lifeline, os.O_RDONLY)
    at_start = read_at_start(os.environ)
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # as common.command_line.tensorflow_start_up does
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
            with contextlib.suppress(BrokenPipeError):  # a killed client
                connection.sendall(os.waitpid(child, 0)[1].to_bytes(4, "little"))
            connection.close()
            os.close(watch)
        for connection in clients.keys() & set(ready):
            if clients[connection] in children:
                for number in connection.recv(16) or [signal.SIGKILL]:  # no byte: the client was killed
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
                connection.sendall(b"!")
                children[os.pidfd_open(child)] = child, connection


def receive(connection):
    """What a client sends: (its request, its three streams), (None, []) of one that was killed while it sent."""
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    request = connection.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL)
    return (marshal.loads(request), streams) if request else (None, streams)


def run_script(arguments, environment, folder, mask, limits, ignored):
    """Makes of this fork the process that a client asked for, and runs its script, a last time."""
    import atexit
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
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    if signal.SIGINT not in ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    script = os.path.abspath(arguments[0])
    sys.argv = list(arguments)
    sys.path[0:1] = [os.path.dirname(os.path.realpath(script)), *filter(None, environment.get("PYTHONPATH", "").split(":"))]
    for name, file in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        ours = getattr(sys, name)
        stream = open(file, "w" if file else "r", buffering=1 if file == 2 else -1, encoding=ours.encoding,
                      errors=ours.errors, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    threads = environment.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(int(threads) if threads.isdigit() else len(os.sched_getaffinity(0)))
    numpy.random.seed()  # else all forks draw the same; `random` sees to itself
    module = types.ModuleType("__main__")
    module.__file__ = script
    sys.modules["__main__"] = module
    with open(script, encoding="utf-8") as file:
        code = compile(file.read(), script, "exec")
    status = 0
    try:
        exec(code, vars(module))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if status == 1 and error.code != 1:
            print(error.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exception(error.with_traceback(error.__traceback__.tb_next))  # without this file
        status = 1 if not isinstance(error, KeyboardInterrupt) else -signal.SIGINT
    # The rest of Python's own end takes a second in a process of so many modules: each object is freed.
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
