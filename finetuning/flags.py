"""The flags that the fine-tuning scripts share, and the checks that need no file."""
import argparse

import tasks
from common.command_line import ArgumentParser, UserError, add_boolean, number, path
from common.precision import PRECISIONS
from common.run_folder import add_report_to
from common.tables import KINDS, QUOTINGS, encoding_name
from finetuning.data import BALANCED, SAMPLINGS
from finetuning.evaluation import METRICS
from modeling import CLASSIFIERS, FRACTION_POOLINGS, LAYER_POOLINGS, POOLINGS
from optimization import CLIPPINGS, SCHEDULES

FEATURE_FLAGS = ("layers", "layer_pooling", "pooling_type", "hierarchical", "classifier", "lstm_hidden_size",
                 "attention_size", "attention_hops")
MODEL_FLAGS = ("do_lower_case", "never_split", "max_seq_length", "trunc_medium", "max_fractions", *FEATURE_FLAGS)
# No part of a run's recipe: paths, of which the recipe has what they lead to; and what does not decide the result. Those
# of WATCHED leave it the same in distribution alone, by rounding or by how dropout is drawn.
WATCHED = ("gradient_accumulation_steps", "fractions_at_once", "num_processes", "precision", "compile")
NOT_RECIPE = {"data_dir", "bert_config_file", "vocab_file", "init_checkpoint", "predict_file", "output_dir", *WATCHED,
              "do_train", "do_predict", "eval_batch_size", "gradient_checkpointing", "no_cuda", "local_rank",
              "rendezvous_timeout", "overwrite_output_dir", "save_checkpoints_steps", "save_models", "log_steps", "report_to",
              "eval_every", "eval_sample", "allow_divergence", "seed", "encoding", "quoting", "unseen_labels", "id_column",
              "write_text"}
CSV_FLAGS = {"label_column", "text_columns", "text_pair_columns", "sep", "encoding", "quoting", "unseen_labels", "id_column"}
READING_FLAGS = {"label_column", "text_columns", "text_pair_columns", "keep_html", "text_pair"}  # how texts are read
WRITTEN_FLAGS = {"sep", "encoding", "quoting"}  # how a table is written; the next one may be in another way
count, rate = number(int, minimum=1), number(float, minimum=0)


def count_or_fraction(text):
    """argparse type of how many examples are taken: an int, or a float where there is a point (1.0: all of them)."""
    value = number(float, above=0)(text)
    return int(text) if text.isdigit() else value


def make_parser(description, several_tasks=False):
    """The parser of the flags that all fine-tuning scripts have, with their groups as attributes of the same names."""
    parser = ArgumentParser(description)
    parser.data, parser.model = (parser.add_argument_group(name) for name in ("data", "model"))
    parser.recipe = parser.add_argument_group("recipe", "what changes the result")
    parser.speed = parser.add_argument_group(
        "speed", "what changes time and memory; where rounding or the drawing of dropout changes with it, the flag says so")
    parser.output = parser.add_argument_group("output")
    add_data_flags(parser.data, several_tasks)
    add_model_flags(parser.model)
    add_recipe_flags(parser.recipe, several_tasks)
    add_speed_flags(parser.speed)
    add = parser.output.add_argument
    add("--output_dir", type=path, required=True, help="The run's folder; the same command resumes a stopped run.")
    add_boolean(parser.output, "--overwrite_output_dir", False,
                "Remove the run that --output_dir holds and start anew (default: off, another run is refused).")
    add("--save_checkpoints_steps", type=count, default=1000,
        help="Updates between checkpoints to resume from, in addition to one per epoch (default: 1000).")
    add("--save_models", choices=("none", "last", "best", "both"), default="both",
        help="The models to keep: of the last epoch, of the best one, both, or none, to save disk (default: both).")
    add("--eval_every", type=number(float, above=0, maximum=1), metavar="EPOCHS", help="Also evaluate each time this part of "
        "an epoch is done (0.1): a learning curve of training and test figures in results.json (default: off).")
    add("--eval_sample", type=count_or_fraction, metavar="EXAMPLES", help="With --eval_every, evaluate on this many examples "
        "or this fraction, stratified; of the test data the same for every seed (default: all).")
    add_boolean(parser.output, "--allow_divergence", False, "End a run whose loss is no longer a number as a finished one: its "
                "last model is evaluated, outputs that are no numbers counted as 0 (default: off, it is an error).")
    add("--log_steps", type=count, default=10, help="Updates that a line of metrics.jsonl is a mean over (default: 10).")
    add_report_to(parser.output, " (default: tensorboard).")
    return parser


def add_data_flags(group, several_tasks):
    add = group.add_argument
    if several_tasks:
        add("--task_name", type=str.lower, choices=list(tasks.TASKS), nargs="+", help="The data sets to learn together.")
        add("--data_dir", type=path, nargs="+", help="The folder of each task's train and test files, in their order; or one "
            "folder that has a folder named after each task.")
    else:
        add("--task_name", type=str.lower, choices=[*tasks.TASKS, "csv"],
            help="The data set; csv is a file of your own, with --label_column and --text_columns.")
        add("--data_dir", type=path, help="The folder of the task's train and test files.")
        add("--label_column", default="label", help="For csv, the name of the label's column, or its number from 0 if the "
            "file has no header (default: label).")
        add("--text_columns", nargs="+", default=["text"],
            help="For csv, the names or numbers of the text's columns, joined by a space (default: text).")
        add("--text_pair_columns", nargs="+", default=[],
            help="For csv, the columns of a second text: the model reads the pair [CLS] A [SEP] B [SEP], its longer text cut "
            "at the end (default: none, single texts).")
        add("--sep", default=",", help="For csv, the character between columns, or tab (default: a comma; in .tsv a tab).")
        add("--encoding", type=encoding_name, help="The encoding of those text tables for csv, and of a --predict_file, that "
            "are neither UTF-8 nor have a byte order mark (default: none, they are refused).")
        add("--quoting", choices=QUOTINGS, default="auto", help="For csv, whether quotes around a field are its text: none, "
            "they are; all, they are not, and predictions.tsv gets quotes, too; auto, they are in a .tsv that does not show "
            "otherwise (default: auto).")
        add("--unseen_labels", choices=("error", "ignore"), default="error", help="For csv, what a label is that the training "
            "table lacks: an error, or a reason to leave the row out of the evaluation (default: error).")
        add("--predict_file", type=path, help="For --do_predict, a text per line; or, if the name ends as a table's "
            f"({KINDS}), rows as the task has them, with or without the label.")
        add("--id_column", metavar="COLUMN", help="For csv, a column of --predict_file, by name or number, that "
            "predictions.tsv gets, too (default: none).")
        add_boolean(group, "--write_text", False, "Write the texts into predictions.tsv, too (default: off).")
    add_boolean(group, "--keep_html", False, "For imdb, keep the `<br />` of the published text, which the paper's text has "
                "not (default: off, it becomes a space).")
    add_boolean(group, "--text_pair", False, "For yahoo, read title and question as the first text of a pair, the answer as "
                "the second, as the authors do (default: off, one text).")
    add("--num_datas", type=count_or_fraction, help="Train on this many examples (500) or this fraction (0.02; 1.0 is all), "
        "stratified and drawn by --seed; a smaller sample is part of a larger one (default: all; paper, section 5.6).")
    add("--num_test_datas", type=count_or_fraction,
        help="Evaluate on this many test examples or this fraction, the same for every seed (default: all).")
    add("--dev_fraction", type=number(float, minimum=0, below=1), default=0.0, help="Hold out this fraction of the training "
        "data, choose the best epoch on it and test once (default: 0, the test set does, as in the authors' code; for csv, a "
        "table dev beside train takes its place).")


def add_model_flags(group):
    add = group.add_argument
    add("--bert_config_file", type=path, help="The model's configuration (default: the one in the folder --init_checkpoint).")
    add("--vocab_file", type=path,
        help="The WordPiece vocabulary, a vocab.txt or tokenizer.json (default: the one in the folder --init_checkpoint).")
    add("--init_checkpoint", type=path, help="The weights to start from: a folder, a .bin or .safetensors file, the prefix of "
        "a TensorFlow checkpoint, the folder of a multi-task run, or a model's name on the Hub, such as bert-base-uncased or "
        "NAME@REVISION; to evaluate or predict alone, a run's .../best.")
    add_boolean(group, "--do_lower_case", None, "Lower-case the text, for uncased models (default: as tokenizer_config.json or "
                "tokenizer.json beside the vocabulary says, else as the case of its tokens shows).")
    add("--never_split", type=path, metavar="FILE", help="Own tokens, one a line, such as [URL] or @user, each of which stays "
        "one token; what the vocabulary lacks takes the place of an [unusedN]; the model remembers them (default: none).")
    add("--max_seq_length", type=int, default=128,
        help="Maximum length of a sequence in tokens, [CLS] and [SEP] included (default: 128).")
    add("--trunc_medium", type=int, default=-2, help="What to keep of a longer text: -2 the head, -1 the tail, 0 half and "
        "half, k > 0 the first k tokens and the rest from the tail (default: -2; paper, section 5.3.1).")
    add("--layers", type=int, nargs="+",
        help="The layers whose output is the classifier's input, counted from 0: -2 the pooled output, -1 all layers, else "
        "those listed (default: -2, and the last layer with --hierarchical or --classifier bilstm_attention; paper, Table 3).")
    add("--layer_pooling", choices=LAYER_POOLINGS, default="concat",
        help="How to combine several layers (default: concat; paper, Table 3).")
    add("--pooling_type", choices=POOLINGS, default="cls", help="What represents a sequence in a layer: its [CLS] token, or "
        "the mean or maximum over its tokens (default: cls).")
    add("--hierarchical", choices=FRACTION_POOLINGS, help="Cut a text into fractions of --max_seq_length, encode each by "
        "itself and combine their features in this way (default: off; paper, section 5.3.1).")
    add("--max_fractions", type=number(int, minimum=2), help="With --hierarchical, the maximum number of fractions of a text; "
        "--trunc_medium says what to keep of a longer one (default: no limit).")
    add("--classifier", choices=CLASSIFIERS, default="linear", help="A linear layer, or before it a biLSTM with structured "
        "self-attention over the tokens' states: BERT-Feat's with --frozen_bert (default: linear; paper, section 5.4.3).")
    add("--lstm_hidden_size", type=count, default=300,
        help="With --classifier bilstm_attention, the LSTM's units in each direction (default: 300).")
    add("--attention_size", type=count, default=350, help="With --classifier bilstm_attention or --hierarchical "
        "self_attention, the attention's hidden units (default: 350).")
    add("--attention_hops", type=count, default=30,
        help="With --classifier bilstm_attention, the number of weighted sums over a text's tokens (default: 30).")


def add_recipe_flags(group, several_tasks):
    add = group.add_argument
    add_boolean(group, "--do_train", False, "Fine-tune (default: off).")
    if several_tasks:
        add_boolean(group, "--do_eval", False, "Evaluate on each task's test set after each epoch (default: off).")
        add("--task_sampling", choices=SAMPLINGS, default="by_size", help="How an epoch is planned: each update draws its task "
            "by size; or fixed, the authors' way: each task's whole batches in a shuffled order (default: by_size).")
        add("--task_sampling_alpha", type=number(float, minimum=0, maximum=20), default=1.0, help="The probability of a task "
            "is its number of training examples to this power: 1 in proportion, 0 all the same (default: 1.0).")
    else:
        add_boolean(group, "--do_eval", False,
                    "Evaluate on the test set: after each epoch of --do_train, or a saved model (default: off).")
        add_boolean(group, "--do_predict", False, "Write predictions.tsv for --predict_file (default: off).")
    add_boolean(group, "--frozen_bert", False,
                "Train the classifier only: BERT stays fixed and runs without dropout (default: off).")
    add("--frozen_layers", type=count,
        help="Keep the embeddings and this many of the lowest layers fixed, without dropout (default: none).")
    add("--train_batch_size", type=count, default=32,
        help="Examples per update, over all devices and micro-batches (default: 32; paper: 24).")
    add("--learning_rate", type=rate, default=5e-5, help="Peak learning rate (default: 5e-5; paper: 2e-5).")
    add("--num_train_epochs", type=number(float, above=0), default=3.0,
        help="Number of epochs; may be fractional (default: 3.0; paper: 4.0).")
    add("--schedule", choices=SCHEDULES, default="slanted_triangular", help="The rate after warm-up: the authors' 1 - "
        "progress; linear, the same without its step at the end of warm-up; or constant (default: slanted_triangular).")
    add("--warmup_proportion", type=number(float, minimum=0, below=1), default=0.1,
        help="Fraction of all updates over which the rate rises from 0; 0 switches warm-up off (default: 0.1).")
    add("--weight_decay", type=rate, default=0.01,
        help="Decoupled weight decay, not applied to biases and LayerNorm; 0 switches it off (default: 0.01).")
    add("--clip_grad", choices=CLIPPINGS, default="tensor",
        help="Clip each tensor's gradient to norm 1, as the authors do, or the whole gradient (default: tensor).")
    add_boolean(group, "--bias_correction", False, "Use Adam's bias correction, which the authors leave out (default: off).")
    add("--class_weights", metavar="balanced|FILE", type=path, help="Weight the examples of each class in the training loss: "
        "balanced, in inverse proportion to their number; or by a file of lines `class TAB weight` (default: all the same).")
    add("--best_metric", "--metric", choices=METRICS, default="accuracy",
        help="The metric that chooses the best epoch; a tie goes to the lower loss (default: accuracy).")
    add("--patience", type=count,
        help="Stop after this many epochs without a better one; needs --dev_fraction, or a table dev (default: never).")
    add("--eval_epochs", type=count, metavar="EPOCHS", help="Evaluate after every so many epochs and after the last one, not "
        "after each; the best model is one of those evaluated (default: after each).")
    add("--seed", type=number(int, minimum=0, maximum=2**32 - 1), nargs="+", default=[42],
        help="One run per seed; several are summarised by mean and standard deviation (default: 42).")


def add_speed_flags(group):
    add = group.add_argument
    add("--eval_batch_size", type=count, default=32,
        help="Sequences per batch of evaluation or prediction on each device (default: 32).")
    add("--gradient_accumulation_steps", "--accumulate_gradients", type=count, default=1, help="Split each batch into N "
        "micro-batches to save memory; draws other dropout, so the result is the same in distribution (default: 1).")
    add("--fractions_at_once", type=count, default=64, help="With --hierarchical, fractions of a batch that go through BERT "
        "together in training; more are computed in parts, twice, to save memory, with other dropout (default: 64).")
    add("--precision", choices=PRECISIONS, default="auto", help="Numbers to compute with, the weights being float32: "
        "float32, its products rounded to TF32 (GPUs), or bfloat16 where it is safe; results differ by rounding (default: "
        "auto, bfloat16 where the device multiplies it natively and the model is not tiny, else float32; a run keeps what it "
        "began with).")
    add_boolean(group, "--compile", False, "Compile the encoder's layers with torch.compile, which draws dropout and rounds in "
                "its own way (default: off).")
    add_boolean(group, "--gradient_checkpointing", False, "Recompute each layer's inner states in the backward pass instead of "
                "keeping them, to save memory (default: off).")
    add_boolean(group, "--no_cuda", False, "Use the CPU even if there is a GPU (default: off).")
    add("--num_processes", type=count, help="Processes on this machine, one per device; each draws its own dropout (default: "
        "one per visible GPU; under torchrun, what torchrun started).")
    add("--local_rank", "--local-rank", type=int, default=-1,
        help="The process's number on its machine, set by launchers (default: from LOCAL_RANK).")
    add("--rendezvous_timeout", type=number(float, above=0), default=300.0,
        help="Seconds to wait for the other processes at the start (default: 300).")


def parse(parser, argv=None):
    """Parses and checks the flags that need no file. Returns (args, the set of flags' names that were given)."""
    unset = object()  # argparse gives no default to what a namespace has already
    marked = parser.parse_args(argv, argparse.Namespace(**{action.dest: unset for action in parser._actions}))
    given = {name for name, value in vars(marked).items() if value is not unset}
    args = parser.parse_args(argv)
    for flag, value in (("task_sampling", "by_size"), ("task_sampling_alpha", 1.0), ("do_predict", False),
                        ("predict_file", None), ("text_pair_columns", []), ("quoting", "auto"), ("unseen_labels", "error"),
                        ("id_column", None), ("write_text", False)):
        setattr(args, flag, getattr(args, flag, value))  # the flags of one task's scripts alone, or of several tasks' alone
    for wrong, message in faults(args, given):
        if wrong:
            raise UserError(message)
    return args, given


def faults(args, given):
    """(whether it is there, what to say) of each fault that flags may have together; the first one counts."""
    trains, several, bilstm = args.do_train, isinstance(args.task_name, list), args.classifier == "bilstm_attention"
    attention = {"attention_size"} if args.hierarchical == "self_attention" else set()  # which has one without the biLSTM
    dev_tables = tasks.own_tables(args.data_dir or "", "dev") if args.task_name == "csv" and trains else []
    develops = args.dev_fraction or dev_tables  # on data that are not the test's
    development = (dev_tables or ["--dev_fraction"])[0]
    evaluates, pairs = args.do_eval or develops, args.text_pair or args.text_pair_columns
    others = several and len(args.task_name) > 1  # beside the task of pairs, with single texts to cut
    of_csv, of_single, of_rates, of_bilstm = (min(flags & given, default=None) for flags in (
        CSV_FLAGS - ({"encoding"} if args.do_predict else set()),
        {"hierarchical"} if others else {"hierarchical", "trunc_medium"},
        {"layer_learning_rate", "layer_learning_rate_decay", "embeddings_learning_rate"},
        {"lstm_hidden_size", "attention_hops", "attention_size"} - attention))
    return (
        # what to do, and with what
        (not (trains or args.do_eval or args.do_predict), "nothing to do: give --do_train, --do_eval or --do_predict"),
        (args.do_predict and not args.predict_file, "--do_predict needs --predict_file"),
        (args.predict_file and not args.do_predict, "--predict_file is read only with --do_predict"),
        (not args.do_predict and (args.id_column or args.write_text),
         f"--{'id_column' if args.id_column else 'write_text'} is for predictions.tsv, which --do_predict writes"),
        (several and len(set(args.task_name)) < len(args.task_name), "--task_name names a task twice"),
        (args.class_weights and not trains, "--class_weights weighs the training loss: add --do_train"),
        (several and args.class_weights not in (None, BALANCED),
         "--class_weights FILE is for one task, whose classes it names; give balanced, or one of the other scripts"),
        (several and not trains, "this script trains: add --do_train; to evaluate or predict, call "
                                 "run_classifier_single_layer.py with --init_checkpoint OUTPUT_DIR/TASK/best"),
        (not trains and not args.init_checkpoint,
         "without --do_train, --init_checkpoint must name the folder of a fine-tuned model"),
        (trains and args.task_name is None, "--task_name is needed with --do_train"),
        (trains and args.data_dir is None, "--data_dir is needed with --do_train"),
        (args.do_eval and args.data_dir is None, "--data_dir is needed with --do_eval"),
        # a flag that has nothing to act on, or contradicts another
        (args.task_name not in ("csv", None) and of_csv, f"--{of_csv} belongs to --task_name csv, not to {args.task_name}"),
        (args.task_name == "csv" and (args.keep_html or args.text_pair),
         f"--{'keep_html' if args.keep_html else 'text_pair'} is not for --task_name csv, whose texts are read as they are; "
         "--text_pair_columns names the second text of a pair"),
        (pairs and of_single, f"--{of_single} is for single texts: a pair is cut at the end of its longer text; leave it out"),
        (not trains and len(args.seed) > 1, "several --seed need --do_train"),
        (len(set(args.seed)) < len(args.seed), "--seed names a seed twice"),
        (args.dev_fraction and dev_tables, f"--dev_fraction: {args.data_dir} has {development}, which is the development set; "
                                           "leave the flag out, or move the table away"),
        ("unseen_labels" in given and not evaluates, "--unseen_labels needs data to evaluate: --do_eval"),
        (args.patience and not develops, "--patience needs data to watch: add for example --dev_fraction 0.1"),
        ("eval_epochs" in given and not (trains and evaluates),
         "--eval_epochs needs --do_train and data to evaluate: --do_eval or --dev_fraction"),
        (args.patience and (args.eval_epochs or 1) > 1, "--patience looks at each epoch: leave --eval_epochs out"),
        (args.max_fractions and not args.hierarchical, "--max_fractions belongs to --hierarchical, which is not given"),
        (args.hierarchical and "trunc_medium" in given and not args.max_fractions,
         "--trunc_medium has nothing to cut with --hierarchical: add --max_fractions or leave it out"),
        ("fractions_at_once" in given and not args.hierarchical, "--fractions_at_once needs --hierarchical"),
        (args.task_sampling == "fixed" and "task_sampling_alpha" in given,
         "--task_sampling_alpha has no part in --task_sampling fixed: leave one of them out"),
        ("eval_every" in given and not (trains and evaluates),
         "--eval_every needs --do_train and data to evaluate: --do_eval or --dev_fraction"),
        ("eval_sample" in given and not args.eval_every, "--eval_sample needs --eval_every"),
        ("save_models" in given and not trains, "--save_models needs --do_train"),
        (args.save_models in ("none", "last") and develops,
         f"--save_models {args.save_models}: {development} tests the best model, keep it with best or both"),
        (args.save_models == "none" and args.do_predict, "--save_models none: --do_predict needs a model, keep last or best"),
        (args.save_models == "best" and not evaluates,
         "--save_models best: what is best is found by --do_eval or --dev_fraction, add one of them"),
        (args.frozen_bert and args.frozen_layers, "--frozen_bert keeps every layer fixed: leave --frozen_layers out"),
        (args.frozen_bert and of_rates, f"--{of_rates} has no layer to act on with --frozen_bert: leave one of them out"),
        (args.frozen_layers and "embeddings_learning_rate" in given,
         "--embeddings_learning_rate has nothing to act on: --frozen_layers keeps the embeddings fixed"),
        (not getattr(args, "discr", True) and of_rates, f"--{of_rates} needs --discr, which is off"),
        (trains and not bilstm and of_bilstm, f"--{of_bilstm} belongs to --classifier bilstm_attention, which is not given"))
