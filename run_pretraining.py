"""Further pre-training of BERT: masked LM and next sentence prediction on TFRecords, in TensorFlow 2.

    python run_pretraining.py \\
      --input_file=./tmp/tf_AGnews.tfrecord \\
      --output_dir=./uncased_L-12_H-768_A-12_AGnews_pretrain \\
      --do_train=True --do_eval=True \\
      --bert_config_file=./uncased_L-12_H-768_A-12/bert_config.json \\
      --init_checkpoint=./uncased_L-12_H-768_A-12/bert_model.ckpt \\
      --train_batch_size=32 --max_seq_length=128 --max_predictions_per_seq=20 \\
      --num_train_steps=100000 --num_warmup_steps=10000 --save_checkpoints_steps=10000 --learning_rate=5e-5

Input: the files of create_pretraining_data.py (records_tf.py has the format). All records are read and checked first.
Output folder: model.ckpt-N (Google's variable names, with optimizer slots), checkpoint, bert_config.json, vocab.txt,
run.json (flags, versions, devices, commit), metrics.jsonl, TensorBoard events in train/ and eval/, eval_results.txt.

Stopped anywhere (SIGKILL too), the same command goes on from the last whole checkpoint and ends at the same weights.
SIGTERM and Ctrl-C save first. An output folder of another run is refused, unless --overwrite_output_dir.

Several GPUs: nothing to add. Several machines: the same command on each, output folder of the first worker used, with

    TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'

A TPU: --use_tpu --tpu_name=NAME (on a TPU machine itself: --use_tpu alone). Tests on CPU: a tiny config, few steps.
Next step: convert_tf_checkpoint_to_pytorch.py (the command is printed at the end).
"""
import datetime
import glob
import hashlib
import json
import os
import platform
import shutil

from command_line import (ArgumentParser, UserError, add_boolean, atomic_write, check_output_folder, decode_lines, number,
                          read_recipe, require_file, run, source_commit, tensorflow_start_up)
from configuration import BertConfig

KIND = "further pre-training"  # of a run, in its run.json
GELUS = {"erf": "gelu", "tanh": "gelu_new"}  # --gelu -> hidden_act
RECIPE_FLAGS = ("max_seq_length", "max_predictions_per_seq", "train_batch_size", "learning_rate", "num_train_steps",
                "num_warmup_steps", "random_seed")
TPU_FLAGS = ("tpu_name", "tpu_zone", "gcp_project", "master")


def parse_flags(arguments=None):
    """The flags of the command line, those of google-research/bert with its defaults and ours."""
    parser = ArgumentParser(__doc__)

    # --- data ---
    group = parser.add_argument_group("data")
    group.add_argument("--input_file", required=True,
                       help="TFRecords to train on: paths and globs, separated by commas.")
    group.add_argument("--eval_file", help="TFRecords to evaluate on, written like --input_file. Default: those of "
                       "--input_file, as Google's script does; a line of the log says so.")
    group.add_argument("--max_seq_length", type=number(int, minimum=1), default=128,
                       help="Tokens of a record, as the TFRecord was made with. Default: 128.")
    group.add_argument("--max_predictions_per_seq", type=number(int, minimum=1), default=20,
                       help="Places for masked tokens in a record, as the TFRecord was made with. Default: 20.")

    # --- model ---
    group = parser.add_argument_group("model")
    group.add_argument("--bert_config_file", required=True, help="The model's shape, Google's bert_config.json.")
    group.add_argument("--init_checkpoint", help="Prefix of the TensorFlow checkpoint to start from, as "
                       "bert_model.ckpt. Heads that it lacks start new. Default: none, all weights start new.")
    group.add_argument("--vocab_file", help="The vocabulary, to be checked and copied into the output folder. Default: "
                       "vocab.txt beside --bert_config_file or --init_checkpoint, none where there is no such file.")
    group.add_argument("--gelu", choices=GELUS, help="How gelu is computed, by the error function (the authors' code) "
                       "or by its tanh approximation (Google's latest); the output folder's bert_config.json says it "
                       "too. Default: what hidden_act of --bert_config_file says, where gelu is erf.")

    # --- recipe: these change the result ---
    group = parser.add_argument_group("recipe (changes the result)")
    add_boolean(group, "--do_train", False, "Train. Default: False.")
    add_boolean(group, "--do_eval", False, "Evaluate at the end. Default: False.")
    group.add_argument("--train_batch_size", type=number(int, minimum=1), default=32,
                       help="Sequences of one update, over all devices and micro-batches. Default: 32.")
    group.add_argument("--eval_batch_size", type=number(int, minimum=1), default=8,
                       help="Sequences of one evaluation step, over all devices. Default: 8.")
    group.add_argument("--max_eval_steps", type=number(int, minimum=1), default=100,
                       help="Evaluation steps at most; the first records of the file are taken. Default: 100.")
    group.add_argument("--learning_rate", type=number(float, above=0.0), default=5e-5,
                       help="Peak rate of AdamWeightDecay. Default: 5e-5.")
    group.add_argument("--num_train_steps", type=number(int, minimum=1), default=100000,
                       help="Updates in all; the rate falls to 0 at the last. Default: 100000.")
    group.add_argument("--num_warmup_steps", type=number(int, minimum=0), default=10000,
                       help="Updates over which the rate rises linearly from 0. Default: 10000; 0 switches it off.")
    group.add_argument("--random_seed", type=number(int, minimum=0, maximum=2 ** 31 - 1), default=12345,
                       help="Seed of new weights, dropout and the records' order. Default: 12345.")

    # --- speed: these change the time, the result only by rounding (and the devices' dropout) ---
    group = parser.add_argument_group("speed (changes the time, not the result beyond rounding)")
    group.add_argument("--strategy", choices=("one", "mirrored", "multi_worker", "tpu"), help="Devices: one; all "
                       "GPUs of this machine; those of all machines in TF_CONFIG; a TPU. Default: multi_worker where "
                       "TF_CONFIG names several workers, mirrored where there are several GPUs, else one.")
    group.add_argument("--gradient_accumulation_steps", type=number(int, minimum=1), default=1, help="Micro-batches "
                       "that --train_batch_size is cut into, to save memory. Default: 1, not cut.")
    add_boolean(group, "--bf16", False, "Compute in bfloat16 with float32 weights, for devices with bfloat16 units. "
                "Default: False.")
    add_boolean(group, "--xla", False, "Compile with XLA; pays on GPUs after a slower start. Default: False.")
    add_boolean(group, "--deterministic", True, "Use only operations that give the same bits every time, so that a "
                "resumed run equals an undisturbed one to the bit on a GPU too. Default: True; =False may be faster.")
    group.add_argument("--iterations_per_loop", type=number(int, minimum=1), default=1000, help="Steps at most that "
                       "run in one call on the device. Calls are kept near one second, so that bar and signals "
                       "are served; across machines a call is one step. Default: 1000.")
    add_boolean(group, "--use_tpu", False, "Train on a TPU, the same as --strategy tpu. Default: False.")
    group.add_argument("--tpu_name", help="Name or grpc:// address of the TPU. Default: this machine's own.")
    group.add_argument("--tpu_zone", help="Its Google Cloud zone. Default: that of the machine.")
    group.add_argument("--gcp_project", help="Its Google Cloud project. Default: that of the machine.")
    group.add_argument("--master", help="grpc:// address of the TPU's TensorFlow server, used instead of its name.")
    group.add_argument("--num_tpu_cores", type=number(int, minimum=1), default=8,
                       help="Cores that the TPU must have. Default: 8.")

    # --- output ---
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", required=True, help="Folder of the checkpoints and all else that is written.")
    group.add_argument("--save_checkpoints_steps", type=number(int, minimum=1), default=1000,
                       help="Steps between checkpoints; the last step has one too. Default: 1000.")
    group.add_argument("--keep_checkpoint_max", type=number(int, minimum=0), default=5,
                       help="Newest checkpoints kept. Default: 5; 0 keeps all.")
    group.add_argument("--log_steps", type=number(int, minimum=1), default=100,
                       help="Steps between lines of metrics.jsonl and TensorBoard events, means of them. Default: 100.")
    add_boolean(group, "--overwrite_output_dir", False, "Delete the run that --output_dir holds and start anew (leave "
                "it out to go on with a stopped run). Default: False, another run's folder is refused.")
    return parser.parse_args(arguments)


def check_flags(flags):
    """Raises UserError where flags contradict each other; sets --strategy by --use_tpu."""
    if not flags.do_train and not flags.do_eval:
        raise UserError("nothing to do: pass --do_train, --do_eval or both")
    if flags.use_tpu and flags.strategy not in (None, "tpu"):
        raise UserError(f"--use_tpu contradicts --strategy {flags.strategy}")
    if flags.use_tpu:
        flags.strategy = "tpu"
    for name in TPU_FLAGS:
        if getattr(flags, name) and flags.strategy != "tpu":
            raise UserError(f"--{name} needs --use_tpu")
    if flags.train_batch_size % flags.gradient_accumulation_steps:
        raise UserError(f"--train_batch_size {flags.train_batch_size} is no multiple of --gradient_accumulation_steps "
                        f"{flags.gradient_accumulation_steps}")
    if flags.overwrite_output_dir and not flags.do_train:
        raise UserError("--overwrite_output_dir without --do_train would leave nothing to evaluate")
    check_output_folder(flags.output_dir, "--output_dir")
    sources = {"--bert_config_file": flags.bert_config_file} | (
        {"--init_checkpoint": flags.init_checkpoint} if flags.init_checkpoint else {})
    for flag, path in sources.items():
        if flags.do_train and os.path.realpath(os.path.dirname(path)) == os.path.realpath(flags.output_dir):
            raise UserError(f"--output_dir is the folder of {flag}, whose files would be mixed with the run's; choose "
                            "another")


def input_files(patterns, flag):
    """The files, sorted within each glob, that the comma-separated paths and globs of `flag` name."""
    files = []
    for pattern in patterns.split(","):
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) and not os.path.exists(pattern) else [pattern]
        if not found:
            raise UserError(f"{flag}: no file fits {pattern}")
        files += [require_file(path, flag) for path in found]
    return files


def find_vocab(flags, config):
    """The vocabulary's path, by flag or beside the config or checkpoint, checked against the config; None without."""
    path = flags.vocab_file
    if path is None:
        beside = [os.path.join(os.path.dirname(file), "vocab.txt")
                  for file in (flags.bert_config_file, flags.init_checkpoint) if file]
        path = next((candidate for candidate in beside if os.path.isfile(candidate)), None)
    if path is not None:
        config.check_vocab(sum(1 for _ in decode_lines(require_file(path, "--vocab_file"))), path)
    return path


def cluster_role():
    """(number of workers, whether this process is the one that prints and writes) by the environment's TF_CONFIG."""
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        return 1, True
    try:
        described = json.loads(text)
        cluster = described.get("cluster", {})
        task = described.get("task", {"type": "worker", "index": 0})
        workers = sum(len(cluster.get(job, ())) for job in ("chief", "worker"))
        first = (task["type"], int(task["index"])) == ("chief" if "chief" in cluster else "worker", 0)
    except (ValueError, AttributeError, KeyError, TypeError):
        raise UserError("TF_CONFIG is not the JSON of a cluster; --help shows one") from None
    return max(workers, 1), first


def fingerprint(prefix):
    """A digest of a checkpoint's index, which has the checksums of all its tensors; `none` without a checkpoint."""
    if not prefix or not os.path.isfile(f"{prefix}.index"):
        return "none"
    with open(f"{prefix}.index", "rb") as file:
        return f"sha256 {hashlib.sha256(file.read()).hexdigest()[:16]}"


class RunFolder:
    """The output folder and the run in it, known by its recipe: the flags, config and inputs that make the result."""

    def __init__(self, flags, config, vocab_file):
        self.flags, self.config, self.vocab_file = flags, config, vocab_file
        self.path = os.path.join(flags.output_dir, "run.json")
        self.recipe = {f"--{name}": getattr(flags, name) for name in RECIPE_FLAGS}
        self.recipe["--init_checkpoint"] = fingerprint(flags.init_checkpoint)
        self.recipe |= {f"bert_config.json {key}": value for key, value in config.to_dict().items()}

    def check(self, records=None):
        """Raises UserError, naming the first difference, where the folder holds another run. With `records`, those of
        --input_file are compared too. A run of another script may not even be overwritten."""
        mend = "choose another --output_dir, or --overwrite_output_dir to delete that run"
        if not os.path.exists(self.path):
            if not self.flags.overwrite_output_dir and glob.glob("model.ckpt-*.index", root_dir=self.flags.output_dir):
                raise UserError(f"--output_dir: {self.flags.output_dir} holds checkpoints without a run.json; {mend}")
            return
        held = read_recipe(self.path, KIND)
        if self.flags.overwrite_output_dir:
            return
        for key, value in self.full_recipe(records).items():
            if held.get(key) != value:
                raise UserError(f"--output_dir: {self.flags.output_dir} holds another run: {key} was {held.get(key)}, "
                                f"now it is {value}; {mend}")

    def full_recipe(self, records):
        """The recipe, with the records if they are known: their content, not where they lie."""
        inputs = {"--input_file": f"{len(records)} records, sha256 {records.sha256[:16]}"} if records else {}
        return self.recipe | inputs

    def prepare(self, records, devices):
        """Writes what a run starts with: bert_config.json, vocab.txt, and run.json unless it goes on."""
        os.makedirs(self.flags.output_dir, exist_ok=True)
        if not os.path.exists(self.path):
            described = {"kind": KIND, "recipe": self.full_recipe(records),
                         "flags": vars(self.flags), "devices": devices, "versions": versions(), "commit": source_commit(),
                         "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
            with atomic_write(self.path) as file:
                json.dump(described, file, indent=2)
                file.write("\n")
        self.config.write(os.path.join(self.flags.output_dir, "bert_config.json"))
        if self.vocab_file:
            with open(self.vocab_file, "rb") as source, \
                    atomic_write(os.path.join(self.flags.output_dir, "vocab.txt"), "wb") as copy:
                shutil.copyfileobj(source, copy)
        else:
            print("note: no --vocab_file and no vocab.txt beside the config or checkpoint, so none is copied")


def versions():
    """Versions of what computes the result."""
    import numpy
    import tensorflow
    return {"python": platform.python_version(), "tensorflow": tensorflow.__version__, "numpy": numpy.__version__}


def print_next(flags):
    """Prints what lies in the output folder and the command that comes next."""
    prefix = os.path.join(flags.output_dir, f"model.ckpt-{flags.num_train_steps}")
    config_file, weights = (os.path.join(flags.output_dir, name) for name in ("bert_config.json", "pytorch_model.bin"))
    print(f"wrote {flags.output_dir}: {', '.join(sorted(os.listdir(flags.output_dir)))}\n"
          f"next:\npython convert_tf_checkpoint_to_pytorch.py \\\n  --tf_checkpoint_path {prefix} \\\n"
          f"  --bert_config_file {config_file} \\\n  --pytorch_dump_path {weights}")


def main():
    flags = parse_flags()
    check_flags(flags)
    config = BertConfig.from_json_file(flags.bert_config_file)
    if flags.gelu:
        config.hidden_act = GELUS[flags.gelu]
    config.check_max_seq_length(flags.max_seq_length)
    files = input_files(flags.input_file, "--input_file")
    eval_files = input_files(flags.eval_file, "--eval_file") if flags.eval_file else []
    num_workers, first = cluster_role()
    folder = RunFolder(flags, config, find_vocab(flags, config)) if first else None
    if folder and flags.do_train:
        folder.check()
    with tensorflow_start_up():
        from pretraining_tf import pretrain  # TensorFlow takes seconds to load: only now, when the flags are right
    pretrain(flags, config, files, eval_files, folder, num_workers)
    if folder and flags.do_train:
        print_next(flags)


if __name__ == "__main__":
    run(main)
