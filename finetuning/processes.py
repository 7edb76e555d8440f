"""The processes of a fine-tuning run, one a device: how they start, talk and stop together."""
import contextlib
import ctypes
import dataclasses
import datetime
import gc
import logging
import os
import signal
import sys
import time
import traceback

import torch
import torch.distributed as dist

from common.command_line import UserError, end_with_parent, print_error, rendezvous
from common.precision import auto_on_cpu


@dataclasses.dataclass
class World:
    """The processes of a run: this one's rank, how many there are, and the device that it computes on."""
    rank: int
    size: int
    device: torch.device

    @property
    def main(self):
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def print(self, *words, sep=" "):
        if self.main:
            print(*words, sep=sep, flush=True)

    def sum(self, tensor):
        """The sum of every process's tensor."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max(self, number):
        """The largest of every process's whole number: all of them stop after the same update."""
        if self.size == 1:
            return number
        numbers = torch.tensor([number])
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return numbers.item()

    def gather(self, value):
        """The list of every process's value, any that can be pickled. Each waits here for all."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def together(self, function, *arguments):
        """What function(*arguments) gives in this process, once all have got there. Where it raises UserError in any of them
        all end; a message that is the main process's too is left to that one."""
        value = error = None
        try:
            value = function(*arguments)
        except UserError as raised:
            error = raised
        messages = self.gather(error and str(error))
        if error and (self.main or str(error) != messages[0]):
            raise error
        if any(messages):
            sys.exit(1)
        return value

    def fail(self, message):
        """Ends all processes, which have all got here, with an error."""
        def refuse():
            raise UserError(message)
        self.together(refuse)

    def on_main(self, function, *arguments):
        """What function(*arguments) gives in the main process alone, in all of them; see `together`."""
        return self.gather(self.together(lambda: function(*arguments) if self.main else None))[0]


SAVING_SECONDS = 600  # given to processes that are stopped, which end their update and save; then they are killed
LAUNCHER = "FINE_TUNING_LAUNCHER_PID"  # set by `launch` for the processes that it starts


@contextlib.contextmanager
def connect(local_rank, use_gpu, timeout):
    """Connects the processes of the run, one a device, and yields this one's World.

    local_rank: the device's number, unless LOCAL_RANK of a launcher says another. timeout: seconds to wait for those that
    have not come, then the process ends with an error (see common.command_line.rendezvous). Raises UserError where another
    process is lost on the way.
    """
    if LAUNCHER in os.environ and sys.platform == "linux":
        # A command that is typed again must not meet processes of the last one that still write.
        end_with_parent()
        if os.getppid() != int(os.environ[LAUNCHER]):  # it had ended before
            sys.exit(128 + signal.SIGKILL)
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", local_rank))
    if use_gpu and local_rank >= torch.cuda.device_count():
        raise UserError(f"there is no GPU for process {local_rank} of this machine, only {torch.cuda.device_count()} are "
                        "visible; start one process a GPU")
    device = torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    if size == 1:
        yield World(0, 1, device)
        return
    meet("cpu:gloo,cuda:nccl" if use_gpu else "gloo", rank, size, timeout)
    try:
        yield World(rank, size, device)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold the DistributedDataParallel of a run that failed
        if isinstance(error, dist.DistBackendError) or isinstance(error, RuntimeError) and "gloo" in str(error):
            raise UserError(f"process {rank} of {size} lost another one, whose own message says why "
                            f"({str(error).splitlines()[0][:200]})") from None
        raise
    finally:
        # A DistributedDataParallel that outlives the process group ends it, and waits, without giving the interpreter's
        # lock back, for gloo's thread, which may be waiting for that lock.
        gc.collect()
        dist.destroy_process_group()


def keep_freed_memory():
    """Has glibc keep the memory that is freed. It would give large pieces back to the system, and an update spends 5% of its
    time and more on getting them again, page by page."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):  # glibc's alone
        libc.mallopt(-3, 2**30) or libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: pieces up to 1 GiB come from the heap; up to
        # 32 MiB before glibc 2.35, which takes no more, and which M_TRIM_THRESHOLD alone would keep at 128 KiB
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: which never shrinks


def meet(backend, rank, size, timeout):
    """Makes the process group once all processes have come."""
    host, port = os.environ.get("MASTER_ADDR", "localhost"), int(os.environ.get("MASTER_PORT", 29500))
    is_host = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else the launcher's own store is there
    come = 1
    with rendezvous(lambda: f"{size - come} of {size} processes at {host}:{port}", timeout):
        # A little longer than our own wait, which ends the process with a line instead of a traceback.
        patience = datetime.timedelta(seconds=timeout + 60)
        store = dist.TCPStore(host, port, size, is_host, patience, wait_for_workers=False)
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)  # a restart counts anew
        come = store.add("come", 1)
        while come < size:  # not init_process_group, which would wait without saying for how many
            time.sleep(0.01)
            come = store.add("come", 0)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def launch(num_processes, use_gpu):
    """Starts this command once for each device of the machine, unless a launcher did. Returns whether it ran so.

    num_processes: --num_processes, or None for one a visible GPU. Ends the process as its first failing one ended.
    """
    if "RANK" in os.environ:
        if num_processes and num_processes != int(os.environ.get("LOCAL_WORLD_SIZE", num_processes)):
            raise UserError("--num_processes differs from what the launcher started; leave it out under torchrun")
        return False
    gpus = torch.cuda.device_count() if use_gpu else 0
    processes = num_processes or max(1, gpus)
    if gpus and processes > gpus:
        raise UserError(f"--num_processes {processes}: only {gpus} GPUs are visible")
    if processes == 1:
        return False
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // processes)))
    os.environ[LAUNCHER] = str(os.getpid())
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it repeats in pages what a process says
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=str(os.getpid()),
                          rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, shutdown_timeout=SAVING_SECONDS)
    try:
        elastic_launch(config, sys.executable)("-u", *sys.argv)
    except ChildFailedError as error:
        # torch knows the second alone: of those that ended in one, the killed one is the cause, unless torch killed it
        rank, failure = min(error.failures.items(), key=lambda item: (
            item[1].timestamp, item[1].exitcode >= 0 or item[1].exitcode == -signal.SIGTERM))
        if failure.exitcode < 0:  # else the process itself has said why
            print_error(f"process {rank} of {processes} was ended by {signal.Signals(-failure.exitcode).name}"
                        + (", perhaps for want of memory" if failure.exitcode == -signal.SIGKILL else "")
                        + "; the same command goes on from the last checkpoint")
            sys.exit(128 - failure.exitcode)
        sys.exit(failure.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    return True


def choose_precision(asked, began, hidden_size, device):
    """(one of PRECISIONS but auto, the words for why it is this one). asked: one of PRECISIONS; began: the precision of the run
    that goes on, or None. Raises UserError where the device has no TF32."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        reason = f"a GPU of compute capability {'8.0 or more' if native else 'below 8.0'}"
    else:
        native, reason = auto_on_cpu(hidden_size)
    if asked == "tf32" and not (native and device.type == "cuda"):
        raise UserError("--precision tf32 is of GPUs of compute capability 8.0 or more, there are none; pass --precision auto")
    if asked != "auto":
        return asked, "--precision"
    return (began, "as the run began") if began else ("bf16" if native else "float32", reason)
