"""The processes of a fine-tuning run, one a device: how they start, talk and stop together."""
import contextlib
import dataclasses
import gc
import logging
import os
import signal
import sys
import traceback

import torch
import torch.distributed as dist

from command_line import UserError, end_with_parent


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

    def print(self, *words):
        if self.main:
            print(*words, flush=True)

    def sum(self, tensor):
        """The sum of every process's tensor."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value):
        """The list of every process's value, any that can be pickled."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values


LAUNCHER = "FINE_TUNING_LAUNCHER_PID"  # set by `launch` for the processes that it starts


def end_with_launcher():
    """Has this process end with the one that started it: a command that is typed again must not meet processes of the
    last one that still write."""
    if LAUNCHER in os.environ and sys.platform == "linux":
        end_with_parent()
        if os.getppid() != int(os.environ[LAUNCHER]):  # it had ended before
            sys.exit(128 + signal.SIGKILL)


@contextlib.contextmanager
def join(args):
    """Joins the processes of the run, one a device."""
    end_with_launcher()
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", max(args.local_rank, 0)))
    cuda = torch.cuda.is_available() and not args.no_cuda
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield World(rank, size, device)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold the DistributedDataParallel of a run that failed
        if isinstance(error, dist.DistBackendError) or isinstance(error, RuntimeError) and "gloo" in str(error):
            raise UserError(f"process {rank} of {size} lost another one, whose own message says why "
                            f"({str(error).splitlines()[0][:200]})") from None
        raise
    finally:
        # One that outlives the process group ends it, and waits, without giving the interpreter's lock back, for
        # gloo's thread, which may be waiting for that lock.
        gc.collect()
        dist.destroy_process_group()


def launch(args):
    """Starts this command once for each device of the machine, unless a launcher did. Returns whether it ran so."""
    if "RANK" in os.environ:
        if args.num_processes and args.num_processes != int(os.environ.get("LOCAL_WORLD_SIZE", args.num_processes)):
            raise UserError("--num_processes differs from what the launcher started; leave it out under torchrun")
        return False
    gpus = 0 if args.no_cuda else torch.cuda.device_count()
    processes = args.num_processes or max(1, gpus)
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
                          rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0)
    try:
        elastic_launch(config, sys.executable)("-u", *sys.argv)
    except ChildFailedError as error:  # the process itself has said why
        sys.exit(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    return True


class StopRequest:
    """SIGTERM or SIGINT (Ctrl-C), remembered until the update under way is done and saved: a context, for training alone.

    Elsewhere the signal ends the process at once: nothing is lost there, because what was learnt is saved already.
    `received` is the signal's number, or 0.
    """

    def __init__(self, world):
        self.world, self.received = world, 0

    def __enter__(self):
        self.handlers = {number: signal.signal(number, self.receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.received:  # after the last update
            os.kill(os.getpid(), self.received)

    def receive(self, number, _):
        self.received = number

    def agreed(self):
        """The signal that any process got, or 0: all of them stop after the same update."""
        if self.world.size == 1:
            return self.received
        number = torch.tensor([self.received])
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return number.item()
