"""Further pre-training of BERT: masked LM and next sentence prediction (or not) on TFRecords, in TensorFlow 2.

    python run_pretraining.py \\
      --input_file=./tmp/tf_AGnews.tfrecord \\
      --output_dir=./uncased_L-12_H-768_A-12_AGnews_pretrain \\
      --do_train=True --do_eval=True \\
      --bert_config_file=./uncased_L-12_H-768_A-12/bert_config.json \\
      --init_checkpoint=./uncased_L-12_H-768_A-12/bert_model.ckpt \\
      --train_batch_size=32 --max_seq_length=128 --max_predictions_per_seq=20 \\
      --num_train_steps=100000 --num_warmup_steps=10000 --save_checkpoints_steps=10000 --learning_rate=5e-5

Input: the files of create_pretraining_data.py, which says what a record holds. All records are read and checked first.
Output folder: model.ckpt-N (Google's variable names, with optimizer slots), checkpoint, bert_config.json, vocab.txt, run.json
(recipe, flags, versions, devices, commit), metrics.jsonl, tensorboard/, eval_results.txt, evaluation.json.

If the run is stopped, even by SIGKILL, run the same command again, without --overwrite_output_dir: it goes on from the last
whole checkpoint and ends at the same weights. SIGTERM and Ctrl-C save first. The output folder of another run is refused,
unless --overwrite_output_dir. To train further than --num_train_steps, start a run in another --output_dir with the last
checkpoint as its --init_checkpoint.

Several GPUs: nothing to add. Several machines: the same command on each, with an --output_dir of which the first worker's is
used, and

    TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'

A TPU: --use_tpu --tpu_name=NAME (on a TPU machine itself: --use_tpu alone). Tests on CPU: a tiny config, few steps.
Next step: convert_tf_checkpoint_to_pytorch.py (the command is printed at the end).
"""
import os

from common.command_line import ArgumentParser, UserError, add_boolean, command, number, path, run
from common.files import check_output_folder
from common.run_folder import add_report_to, check_reporters
from pretraining.command import GELUS, pretrain
from pretraining.devices import PRECISIONS, STRATEGIES

POSITIVE = number(int, minimum=1)
BATCH_SIZE = number(int, minimum=1, maximum=1 << 20)  # beyond, a number is a slip: the largest published batches have 65,536


def parse_arguments():
    """The flags of the command line, those of google-research/bert with its defaults and ours."""
    parser = ArgumentParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--input_file", required=True, help="TFRecords to train on: names and globs separated by commas.")
    data.add_argument("--eval_file", help="TFRecords to evaluate on, written like --input_file; default: those of "
                      "--input_file, as in Google's script, which the log says.")
    data.add_argument("--max_seq_length", type=POSITIVE, default=128, metavar="TOKENS",
                      help="Length of a record in tokens, the same as for create_pretraining_data.py; default: 128.")
    data.add_argument("--max_predictions_per_seq", type=POSITIVE, default=20, metavar="TOKENS", help="Maximum number of masked "
                      "tokens in a record, the same as for create_pretraining_data.py; default: 20.")

    model = parser.add_argument_group("model")
    model.add_argument("--bert_config_file", type=path, help="Configuration of the model: bert_config.json; default: the "
                       "config.json or bert_config.json beside --init_checkpoint.")
    model.add_argument("--init_checkpoint", type=path, metavar="PREFIX", help="Prefix of the TensorFlow checkpoint to start "
                       "from, such as bert_model.ckpt; or a folder with model.safetensors, or a model's name on the Hub, such "
                       "as bert-base-uncased; weights that it lacks are initialised; default: none, so all are.")
    model.add_argument("--vocab_file", type=path, help="Vocabulary to check and copy to the output folder; default: the "
                       "vocab.txt or tokenizer.json beside --bert_config_file or --init_checkpoint, if there is one.")
    model.add_argument("--gelu", choices=GELUS, help="Formula of gelu: the error function (the authors' code) or its tanh "
                       "approximation (Google's latest code); default: hidden_act of --bert_config_file, where gelu means erf.")

    recipe = parser.add_argument_group("recipe (changes the result)")
    add_boolean(recipe, "--do_train", False, "Train; default: False.")
    add_boolean(recipe, "--do_eval", False, "Evaluate, after training if there is any; default: False.")
    add_boolean(recipe, "--next_sentence", True, "Learn next sentence prediction beside the masked LM; default: True; False "
                "leaves its head and the pooler as they are, and takes records of either kind.")
    recipe.add_argument("--train_batch_size", type=BATCH_SIZE, default=32, metavar="SEQUENCES",
                        help="Number of sequences of one update, over all devices and micro-batches; default: 32.")
    recipe.add_argument("--eval_batch_size", type=BATCH_SIZE, default=8, metavar="SEQUENCES",
                        help="Number of sequences of one evaluation step, over all devices; default: 8.")
    recipe.add_argument("--max_eval_steps", type=POSITIVE, default=100, metavar="STEPS",
                        help="Maximum number of evaluation steps, on the first records of the file; default: 100.")
    recipe.add_argument("--learning_rate", type=number(float, above=0.0), default=5e-5, metavar="RATE",
                        help="Peak learning rate of AdamWeightDecay; default: 5e-5.")
    recipe.add_argument("--num_train_steps", type=POSITIVE, default=100000, metavar="STEPS",
                        help="Total number of updates, at the last of which the rate reaches 0; default: 100000.")
    recipe.add_argument("--num_warmup_steps", type=number(int, minimum=0), default=10000, metavar="STEPS",
                        help="Number of updates over which the rate rises linearly from 0; default: 10000; 0 switches it off.")
    recipe.add_argument("--dropout", type=number(float, minimum=0.0, below=1.0), metavar="PROBABILITY",
                        help="Dropout of states and of attention while this pre-trains, such as 0 for a small model; default: "
                        "the configuration's, which stays that of fine-tuning.")
    recipe.add_argument("--random_seed", type=number(int, minimum=0, maximum=2 ** 31 - 1), default=12345, metavar="SEED",
                        help="Seed of new weights, of dropout and of the order of the records; default: 12345.")

    speed = parser.add_argument_group("speed (changes the time; the result by rounding and by the draws of dropout)")
    speed.add_argument("--strategy", choices=STRATEGIES, help="Devices to use, each number of them drawing its own dropout: "
                       "one, all GPUs of this machine (mirrored), the machines of TF_CONFIG (multi_worker) or a TPU; default: "
                       "multi_worker if TF_CONFIG names several workers, mirrored if there are several GPUs, else one.")
    speed.add_argument("--gradient_accumulation_steps", type=POSITIVE, default=1, metavar="N", help="Split each batch into N "
                       "micro-batches to save memory: the same result but for the draws of dropout; default: 1, no split.")
    speed.add_argument("--precision", choices=PRECISIONS, default="auto", help="Numbers to compute with, the weights being "
                       "float32: float32, its products rounded to TF32 (GPUs), or bfloat16; default: auto, bfloat16 where the "
                       "device multiplies it natively and the model is not tiny, else float32; a run keeps what it began with.")
    add_boolean(speed, "--xla", False, "Compile with XLA, which starts slowly and pays off on GPUs; default: False.")
    add_boolean(speed, "--deterministic", True, "Use only operations that give the same bits every time, so that a resumed run "
                "equals an undisturbed one to the bit on GPUs too; default: True; False may be faster.")
    speed.add_argument("--iterations_per_loop", type=POSITIVE, default=1000, metavar="STEPS", help="Maximum number of updates "
                       "in one call to the device, fewer where they take over a second; default: 1000; several machines: 1.")
    speed.add_argument("--rendezvous_timeout", type=number(float, above=0), default=300.0, metavar="SECONDS",
                       help="Seconds to wait for the other processes of TF_CONFIG before giving up; default: 300.")
    add_boolean(speed, "--use_tpu", False, "Train on a TPU, the same as --strategy tpu; default: False.")
    speed.add_argument("--tpu_name", metavar="NAME", help="Name or grpc:// address of the TPU; default: this machine's own.")
    speed.add_argument("--tpu_zone", metavar="ZONE", help="Google Cloud zone of the TPU; default: this machine's.")
    speed.add_argument("--gcp_project", metavar="PROJECT", help="Google Cloud project of the TPU; default: this machine's.")
    speed.add_argument("--master", metavar="ADDRESS",
                       help="grpc:// address of the TPU's TensorFlow server, used instead of --tpu_name; default: none.")
    speed.add_argument("--num_tpu_cores", type=POSITIVE, default=8, metavar="N", help="Cores the TPU must have; default: 8.")

    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", required=True, type=path, metavar="FOLDER",
                        help="Folder for the checkpoints and everything else, created if it does not exist.")
    output.add_argument("--save_checkpoints_steps", type=POSITIVE, default=1000, metavar="STEPS",
                        help="Number of updates between checkpoints; the last update has one too; default: 1000.")
    output.add_argument("--keep_checkpoint_max", type=number(int, minimum=0), default=5, metavar="N",
                        help="Number of newest checkpoints to keep; default: 5; 0 keeps all.")
    add_boolean(output, "--eval_checkpoints", False, "Evaluate at every checkpoint, too, for a curve: lines of kind eval in "
                "metrics.jsonl; needs --do_train and --do_eval; default: False, only at the end.")
    output.add_argument("--log_steps", type=POSITIVE, default=100, metavar="STEPS", help="Number of updates whose means make "
                        "one line of metrics.jsonl and one TensorBoard event; default: 100.")
    add_report_to(output, "; default: tensorboard.")
    add_boolean(output, "--overwrite_output_dir", False, "Remove the run in --output_dir and start anew, instead of resuming "
                "it or refusing another run's folder; default: False.")
    return parser.parse_args()


def check_flags(args):
    """Raises UserError where flags contradict each other; sets --strategy by --use_tpu."""
    if not args.do_train and not args.do_eval:
        raise UserError("nothing to do: pass --do_train, --do_eval or both")
    if args.eval_checkpoints and not (args.do_train and args.do_eval):
        raise UserError("--eval_checkpoints needs --do_train and --do_eval")
    if args.use_tpu and args.strategy not in (None, "tpu"):
        raise UserError(f"--use_tpu contradicts --strategy {args.strategy}")
    if args.use_tpu:
        args.strategy = "tpu"
    for name in ("tpu_name", "tpu_zone", "gcp_project", "master"):
        if getattr(args, name) and args.strategy != "tpu":
            raise UserError(f"--{name} needs --use_tpu")
    if args.train_batch_size % args.gradient_accumulation_steps:
        raise UserError(f"--train_batch_size {args.train_batch_size} is no multiple of --gradient_accumulation_steps "
                        f"{args.gradient_accumulation_steps}")
    if args.overwrite_output_dir and not args.do_train:
        raise UserError("--overwrite_output_dir without --do_train would leave nothing to evaluate")
    check_output_folder(args.output_dir, "--output_dir")
    check_reporters(args.report_to)
    for flag in ("bert_config_file", "init_checkpoint", *["vocab_file"] * args.overwrite_output_dir):
        source = getattr(args, flag)
        is_here = source and (os.path.exists(source) or os.path.exists(f"{source}.index"))  # else it is of the Hub, or missing
        folders = map(os.path.realpath, (source, os.path.dirname(source)) if is_here else ())
        if args.do_train and os.path.realpath(args.output_dir) in folders:
            raise UserError(f"--output_dir is the folder of --{flag}, whose files would be mixed with the run's; choose "
                            "another")


def main():
    args = parse_arguments()
    check_flags(args)
    if pretrain(args) and args.do_train:
        print(f"wrote {args.output_dir}: {', '.join(sorted(os.listdir(args.output_dir)))}")
        files = {"tf_checkpoint_path": f"model.ckpt-{args.num_train_steps}", "bert_config_file": "bert_config.json",
                 "pytorch_dump_path": "pytorch_model.bin"}
        print("next:", command("convert_tf_checkpoint_to_pytorch.py", **{
            flag: os.path.join(args.output_dir, name) for flag, name in files.items()}))


if __name__ == "__main__":
    run(main)
