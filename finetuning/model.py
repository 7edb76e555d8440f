"""Flags and a checkpoint -> a model on a device."""
import dataclasses
import os

import tasks
from common.command_line import UserError
from common.configuration import CONFIG_NAMES, BertConfig, find_config
from common.files import check_schema, read_json
from common.hub import find_on_hub
from common.tables import QUOTINGS, is_encoding
from common.vocabulary import VOCAB_NAMES, find_vocab
from finetuning.data import head_and_tail
from finetuning.flags import CSV_FLAGS, FEATURE_FLAGS, MODEL_FLAGS, READING_FLAGS, WRITTEN_FLAGS, make_parser
from finetuning.weights import find_weights, load_weights, read_weights
from modeling import BertForSequenceClassification, MultiTaskModel, check_choices, check_features
from tokenization import FullTokenizer, read_never_split

RECORD = "classifier.json"  # which a saved model has beside its weights
RECORD_SCHEMA = {
    "task": {"name": str, "domain": str, "labels": [str], "text_columns": [(int, str)], "label_column": (int, str),
             "sep": (str, type(None)), "joiner": str, "numbered": bool, "original": (str, type(None)), "titled": bool,
             "language": str, "strip_html": bool, "num_second": int, "encoding": (str, type(None)), "quoting": str},
    "do_lower_case": bool, "max_seq_length": int, "trunc_medium": int, "max_fractions": (int, type(None)), "layers": [int],
    "layer_pooling": str, "pooling_type": str, "hierarchical": (str, type(None)), "classifier": str,
    "lstm_hidden_size": int, "attention_size": int, "attention_hops": int}


@dataclasses.dataclass
class Inputs:
    """What the flags of a command name: the model's configuration, its tokenizer, each task with its data folder."""
    config: BertConfig
    tokenizer: FullTokenizer
    tasks: list
    data_dirs: list
    hub: str | None  # the name and commit of a start on the Hub


def read_inputs(args, given):
    """The Inputs that the flags name, or those stored in --init_checkpoint, by which `args` is completed. given: the names
    of the flags that the user gave. Raises UserError where something is missing or does not fit together."""
    args.never_split = args.never_split and read_never_split(args.never_split)  # its content, which the model remembers
    hub = None
    if args.do_train:  # a fine-tuned model is a folder of ours
        args.init_checkpoint, hub = find_on_hub(args.init_checkpoint, "--init_checkpoint")
    args.init_checkpoint = model_of_task(args.init_checkpoint, args.task_name, args.do_train)
    folder = args.init_checkpoint if args.init_checkpoint and os.path.isdir(args.init_checkpoint) else None
    stored_task = None if args.do_train else restore_flags(args, given, folder)
    if args.init_checkpoint:
        find_weights(args.init_checkpoint)
    beside = [folder] if folder else []
    args.bert_config_file = args.bert_config_file or find_config(beside)
    args.vocab_file = find_vocab(args.vocab_file, beside)
    for flag, names in (("bert_config_file", CONFIG_NAMES), ("vocab_file", VOCAB_NAMES)):
        if getattr(args, flag) is None:
            raise UserError(f"--{flag} is needed: --init_checkpoint is no folder with {' or '.join(names)}")
    config = BertConfig.from_json_file(args.bert_config_file)
    if args.layers is None:
        args.layers = [config.num_hidden_layers - 1] if args.hierarchical or args.classifier != "linear" else [-2]
    try:
        config.check_max_seq_length(args.max_seq_length)
        check_features(config, args.layers, args.layer_pooling, args.pooling_type, args.hierarchical, args.classifier)
        head_and_tail((args.max_fractions or 1) * (args.max_seq_length - 2), args.trunc_medium)
    except UserError as error:  # of a saved model the flags are the file's
        raise UserError(f"{os.path.join(folder, RECORD)}: {error}" if stored_task else str(error)) from None
    if (args.frozen_layers or 0) > config.num_hidden_layers:
        raise UserError(f"--frozen_layers {args.frozen_layers}: this model has {config.num_hidden_layers} layers")
    asked_by = RECORD if stored_task else "--do_lower_case"
    tokenizer = FullTokenizer.fitting(args.vocab_file, args.do_lower_case, config, asked_by, args.never_split)
    args.do_lower_case = tokenizer.do_lower_case
    if args.init_checkpoint:  # what does not fit is refused before the data are read and a model takes memory
        read_weights(args.init_checkpoint, config, device="meta")
    if hub:
        tokenizer.notes.insert(0, f"{hub} from the Hub, in {args.init_checkpoint}")
    inputs = Inputs(config, tokenizer, *read_tasks(args, stored_task), hub)
    if config.type_vocab_size < 2 and any(task.num_second for task in inputs.tasks):
        raise UserError(f"{args.bert_config_file}: type_vocab_size is 1, and pairs of texts need 2; take another BERT, or give "
                        "the texts as one")
    return inputs


def read_tasks(args, stored_task):
    """(the tasks of the command, the data folder of each). stored_task: that of a saved model, or None."""
    if stored_task is None and args.task_name == "csv":
        stored_task = tasks.csv_task(args.data_dir, args.label_column, args.text_columns, args.sep, args.text_pair_columns,
                                     args.encoding, args.quoting)
    if stored_task:
        return [stored_task], [args.data_dir]
    several = isinstance(args.task_name, list)
    selected = tasks.named_tasks(args.task_name if several else [args.task_name], args.keep_html, args.text_pair)
    return selected, tasks.data_folders(args.task_name, args.data_dir) if several else [args.data_dir]


def model_of_task(path, task_name, do_train):
    """If `path` is the folder of a multi-task run, that of the task's last model to train on (every task saw as many epochs)
    or its best one to use, or the one that was kept; else `path` as it is."""
    for name in ("last", "best") if do_train else ("best", "last"):
        found = os.path.join(path or "", str(task_name), name)
        if os.path.exists(os.path.join(found, "model.safetensors")):
            return found
    return path


def restore_flags(args, given, folder):
    """Sets the flags of a fine-tuned model to what it was trained with. Returns its task."""
    path = os.path.join(folder or "", RECORD)
    if folder is None or not os.path.exists(path):
        raise UserError(f"--init_checkpoint: {args.init_checkpoint} is no folder of a fine-tuned model (it has no "
                        "classifier.json); name a run's best or last folder, or add --do_train")
    stored = {"never_split": None} | read_json(path, {"task": dict})
    stored["task"] = {"encoding": None, "quoting": "auto"} | stored["task"]  # these three earlier models do not have
    check_schema(stored, RECORD_SCHEMA, path)
    check_schema(stored["never_split"] or [], [str], f"{path}, never_split")
    task = tasks.task_from_dict(stored["task"])
    if task.quoting not in QUOTINGS or task.encoding and not is_encoding(task.encoding):
        raise UserError(f"{path}: quoting {task.quoting!r}, encoding {task.encoding!r}: the file is damaged, or not ours")
    check_choices(stored, f"{path}: ")
    for name, values, least in (("labels", task.labels, 2), ("layers", stored["layers"], 1)):
        if len(values) < least:
            raise UserError(f"{path}: {len(values)} {name}, at least {least} needed; the file is damaged, or not ours")
    if args.task_name not in (None, task.name):
        raise UserError(f"--task_name {args.task_name}: the model in {folder} was trained for {task.name}; leave the flag out")
    of_csv = (given & CSV_FLAGS) - ({"encoding"} if args.do_predict else set())
    if task.name != "csv" and of_csv:
        raise UserError(f"--{min(of_csv)} belongs to --task_name csv, the model in {folder} was trained for {task.name}; leave "
                        "the flag out")
    other = sorted(given & READING_FLAGS)
    if task.name == "csv":
        columns, first = list(map(str, task.text_columns)), len(task.text_columns) - task.num_second
        of_model = {"label_column": str(task.label_column), "text_columns": columns[:first],
                    "text_pair_columns": columns[first:]}
        other = [flag for flag in other if getattr(args, flag) != of_model.get(flag)]
        # the next table may be written in another way than that of training
        asked = tasks.own_task(task.label_column, task.text_columns, args.sep, encoding=args.encoding, quoting=args.quoting)
        task = dataclasses.replace(task, **{flag: getattr(asked, flag) for flag in WRITTEN_FLAGS & given})
    elif other and tasks.named_tasks([task.name], args.keep_html, args.text_pair) == [task]:
        other = []
    if other:
        raise UserError(f"--{other[0]}: the model in {folder} was trained on texts that are read in another way; leave the "
                        "flag out")
    for flag in MODEL_FLAGS:
        if flag in given and getattr(args, flag) != stored[flag]:
            raise UserError(f"--{flag} {getattr(args, flag)}: the model in {folder} was trained with {stored[flag]}; leave the "
                            "flag out")
        setattr(args, flag, stored[flag])
    return task


def describe_classifier(args, task):
    """What classifier.json holds: all that `restore_flags` reads."""
    return {"task": task.to_dict()} | {flag: getattr(args, flag) for flag in MODEL_FLAGS}


def describe_google_classifier(labels, do_lower_case, config):
    """The same for a classifier of Google's run_classifier.py: its pooled output, and the defaults of all flags."""
    args = make_parser("").parse_args(["--output_dir", "."])
    args.layers, args.do_lower_case = [-2], do_lower_case
    args.max_seq_length = min(args.max_seq_length, config.max_position_embeddings)
    task = tasks.own_task(args.label_column, args.text_columns, args.sep, pair_columns=args.text_pair_columns)
    return describe_classifier(args, dataclasses.replace(task, labels=tuple(labels)))


def make_model(args, inputs, device):
    """The modeling.MultiTaskModel of the flags on the device, with the weights of --init_checkpoint.

    Returns (model, a line for each task that says which weights were taken). To train, a part that no checkpoint gives is
    random. Raises UserError where the encoder's weights do not fit, and, without --do_train, where the classifier's are
    missing or of another number of classes.
    """
    where = f"--init_checkpoint: {args.init_checkpoint}"
    state = read_weights(args.init_checkpoint, inputs.config) if args.init_checkpoint else None
    classifiers, lines, bert = [], [], None
    for task in inputs.tasks:
        classifier = BertForSequenceClassification(inputs.config, len(task.labels), bert=bert,
                                                   **{flag: getattr(args, flag) for flag in FEATURE_FLAGS})
        bert = classifier.bert
        classifiers.append(classifier)
        if state is None:
            lines.append("no --init_checkpoint: all weights are random")
            continue
        matched, ignored, missing = load_weights(classifier, state, where)
        head = [name for name in missing if not name.startswith("bert.")]
        if head and not args.do_train:
            raise UserError(f"{where} has no {head[0]} of this model, or for another number of classes than the task "
                            f"{task.name}: a prediction would be random; fine-tune first, with --do_train")
        lines.append(f"{task.name}: {len(matched)} weights from {args.init_checkpoint}; {listed('not used', ignored)}; "
                     f"{listed('new and random', missing)}")
    if args.frozen_bert:
        bert.pooler.requires_grad_(False)
    if args.frozen_bert or args.frozen_layers:
        bert.freeze(args.frozen_layers or inputs.config.num_hidden_layers)
    bert.encoder.gradient_checkpointing = args.gradient_checkpointing
    for classifier in classifiers:
        classifier.sequences_at_once = args.fractions_at_once if args.hierarchical else None
    model = MultiTaskModel(classifiers).to(device)
    if args.compile:
        bert.encoder.compile_layers()
    return model, lines


def listed(words, names):
    """`words` with how many names there are, and which."""
    return f"{len(names)} {words}" + (f" ({', '.join(names)})" if names else "")
