"""The devices and processes that share a run: TF_CONFIG, strategies, waiting for each other, the end of one of them.

TensorFlow is imported where it is used: the flags are checked, and --help is printed, before it loads.
"""
import collections
import contextlib
import dataclasses
import json
import os
import re
import socket
import time

from common.command_line import UserError, rendezvous, warn_of_an_idle_gpu
from common.precision import PRECISIONS, auto_on_cpu

Role = collections.namedtuple("Role", "addresses own is_first")
Role.__doc__ = """A process's part in a run: the addresses HOST:PORT of all its processes and its own (none: it is alone), and
whether it is the one that prints and writes."""


@dataclasses.dataclass(frozen=True)
class Tpu:
    """Where a TPU is, by the flags of the same names (None: this machine's own), and how many cores it must have."""
    tpu_name: str | None = None
    tpu_zone: str | None = None
    gcp_project: str | None = None
    master: str | None = None
    num_tpu_cores: int = 8


# Processes

def cluster_role():
    """The Role of this process by the environment's TF_CONFIG. Raises UserError where that describes no cluster."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        described = json.loads(text) if text.strip() else {}
        cluster = described.get("cluster", {})
        addresses = [str(address) for job in ("chief", "worker") for address in cluster.get(job, ())]
        if not addresses:
            return Role([], None, True)
        job, index = described["task"]["type"], int(described["task"]["index"])
        first = "chief" if "chief" in cluster else "worker"
        return Role(addresses, str(cluster[job][index]), (job, index) == (first, 0))
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
        raise UserError("TF_CONFIG is not the JSON of a cluster; --help shows one") from None


def can_be_reached(address, timeout=1):
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError, ValueError), socket.create_connection((host.strip("[]"), int(port)), timeout):
        return True
    return False


def wait_for_all(role, timeout):
    """Waits until every process of the run listens at its address. Raises UserError where this one cannot; ends it, with a
    line, after `timeout` seconds.

    TensorFlow itself waits for ever, and in code that holds Python's lock: no thread and no signal would get a word in. So each
    process listens until it can reach all others, and then makes way for TensorFlow's server at the same port.
    """
    def missing():
        absent = [address for address in role.addresses if address != role.own and not can_be_reached(address)]
        return f"{len(absent)} of {len(role.addresses)} processes at {', '.join(absent)}" if absent else ""

    try:
        server = socket.create_server(("", int(role.own.rpartition(":")[2])))
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"TF_CONFIG: this process cannot listen at {role.own}: {error}") from None
    with server, rendezvous(missing, timeout):
        while missing():
            time.sleep(0.2)


# Strategies

def one_device(role, tpu, rendezvous_timeout):
    import tensorflow as tf
    return tf.distribute.get_strategy()


def all_gpus(role, tpu, rendezvous_timeout):
    import tensorflow as tf
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def all_workers(role, tpu, rendezvous_timeout):
    import tensorflow as tf
    if len(role.addresses) > 1:
        wait_for_all(role, rendezvous_timeout)
    return tf.distribute.MultiWorkerMirroredStrategy()


def tpu_cores(role, tpu, rendezvous_timeout):
    import tensorflow as tf
    address = tpu.master or tpu.tpu_name or "local"
    try:
        if address.startswith("grpc://") and not can_be_reached(address.removeprefix("grpc://"), timeout=10):
            raise OSError("nothing listens there")  # TensorFlow would wait for ever
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(address, tpu.tpu_zone, tpu.gcp_project)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        strategy = tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"--use_tpu: no TPU can be reached as '{address}' ({reason}); check --tpu_name, --tpu_zone and "
                        "--gcp_project, or train without --use_tpu") from None
    if strategy.num_replicas_in_sync != tpu.num_tpu_cores:
        raise UserError(f"--num_tpu_cores is {tpu.num_tpu_cores}, the TPU has {strategy.num_replicas_in_sync}")
    return strategy


STRATEGIES = {"one": one_device, "mirrored": all_gpus, "multi_worker": all_workers, "tpu": tpu_cores}


def make_strategy(name, role, tpu, rendezvous_timeout):
    """(tf.distribute.Strategy, its name, the words for why it is this one) by `name`, a key of STRATEGIES, or with None by what
    the machine has. The first thing that a process does with TensorFlow: multi_worker is refused once a device was touched."""
    import tensorflow as tf
    reason = "--strategy"
    if name is None and len(role.addresses) > 1:
        name, reason = "multi_worker", f"TF_CONFIG names {len(role.addresses)} workers"
    num_gpus = len(tf.config.list_physical_devices("GPU"))
    if not num_gpus and name != "tpu":
        warn_of_an_idle_gpu("TensorFlow", "Its plain wheel has no CUDA libraries: pip install -r requirements-gpu.txt.")
    if name is None:
        name, reason = ("mirrored" if num_gpus > 1 else "one"), f"{num_gpus} GPUs"
    strategy = STRATEGIES[name](role, tpu, rendezvous_timeout)
    return strategy, name, f"{name} ({reason}), {strategy.num_replicas_in_sync} replica(s)"


# Precision

def choose_precision(asked, began, hidden_size, strategy):
    """(one of PRECISIONS but auto, the words for why it is this one), in all processes the first one's.

    asked: one of PRECISIONS; began: the precision of the run that goes on, or None. Float32 products are rounded to TF32 from
    here on with tf32 alone. Raises UserError where the devices have no TF32.
    """
    import tensorflow as tf
    gpus = tf.config.list_physical_devices("GPU")
    has_tf32 = bool(gpus) and all(
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) >= (8, 0) for gpu in gpus)
    if isinstance(strategy, tf.distribute.TPUStrategy):
        has_tf32, native, reason = False, True, "a TPU multiplies bfloat16 natively"
    elif gpus:
        native, reason = has_tf32, f"GPUs of compute capability {'8.0 or more' if has_tf32 else 'below 8.0'}"
    else:
        native, reason = auto_on_cpu(hidden_size)
    if asked == "tf32" and not has_tf32:
        raise UserError("--precision tf32 is of GPUs of compute capability 8.0 or more, there are none; pass --precision auto")
    precision, reason = ((asked, "--precision") if asked != "auto" else (began, "as the run began") if began else
                         ("bf16" if native else "float32", reason))
    with strategy.scope():  # as variables are made, all processes get the first one's values
        shared = tf.Variable(PRECISIONS.index(precision), dtype=tf.int64, trainable=False)
    precision = PRECISIONS[int(strategy.experimental_local_results(shared)[0].numpy())]
    tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")
    return precision, reason


# Failures

@contextlib.contextmanager
def one_line_errors(num_workers):
    """Turns a device's failure that the user can mend into a UserError; every other one is left as it is."""
    import tensorflow as tf
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        told = [line for line in str(error).splitlines() if "OOM" in line or "No space" in line]
        raise UserError(f"out of memory ({''.join(told[:1])[:200]}); lower --train_batch_size or raise "
                        "--gradient_accumulation_steps") from None
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
            tf.errors.DeadlineExceededError) as error:
        if num_workers < 2:
            raise
        lost = sorted({" ".join(found) for found in re.findall(r"/job:(\w+)(?:/replica:\d+)?/task:(\d+)", str(error))})
        named = f" ({', '.join(lost)})" if lost else ""
        raise UserError(f"another worker{named} stopped or cannot be reached; run the same command on all workers again, it "
                        "goes on from the last checkpoint") from None


def cannot_write(path, error):
    """The UserError about a file that could not be written: an OSError, or TensorFlow's tf.errors.OpError, whose words end with
    the system's."""
    reason = (error.strerror if isinstance(error, OSError) else
              re.sub(r" \[Op:.*", "", error.message, flags=re.DOTALL).rpartition("; ")[2])
    remedy = "free some space" if re.search("space|quota", reason) else "mend that"
    return UserError(f"{path} cannot be written: {reason}; {remedy} and run the same command again, what was written before is "
                     "untouched")
