"""What run_pretraining.py does with its flags: what a run is made of, the run itself, the record of its evaluation.

A run is known by its recipe: the flags that decide its result, and digests of the weights, the vocabulary and the records it
reads. Beside the files of every run (common/run_folder.py), the checkpoints, and copies of the configuration and the
vocabulary, its folder holds

    eval_results.txt    the newest evaluation as `key = value` lines, as google-research/bert writes them
    evaluation.json     the same with what it was made of; a finished command that is run again prints it
"""
import collections
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import time

from common.command_line import UserError, fields_of, tensorflow_start_up
from common.configuration import CONFIG_NAMES, BertConfig, find_config
from common.files import digest, digest_of_file, expand_files, read_json, remove, write_json
from common.hub import find_on_hub
from common.names import WEIGHT_FILES
from common.precision import precision_of
from common.run_folder import MetricsLog, RunFolder, versions, write_key_values
from common.vocabulary import carry_vocab, find_vocab, read_fitting_vocab
from pretraining.devices import Tpu, choose_precision, cluster_role, make_strategy, one_line_errors

KIND = "further pre-training"  # of a run, in its run.json
OWNED = re.compile(r"model\.ckpt-\d+(\..+)?|checkpoint|run\.json|metrics\.jsonl|eval_results\.txt|evaluation\.json|tensorboard|"
                   r"wandb|bert_config\.json|vocab\.txt|tokenizer(_config)?\.json")
LEFTOVER = re.compile(rf"\.({OWNED.pattern})\.tmp")  # what a killed process was writing
GELUS = {"erf": "gelu", "tanh": "gelu_new"}  # --gelu -> hidden_act
RECIPE_FLAGS = ("max_seq_length", "max_predictions_per_seq", "train_batch_size", "learning_rate", "num_train_steps",
                "num_warmup_steps", "random_seed")
WATCHED_FLAGS = ("strategy", "gradient_accumulation_steps", "precision", "xla", "deterministic")  # of rounding or dropout
EVALUATION_FLAGS = ("eval_batch_size", "max_eval_steps", "precision")
EVALUATION_SCHEMA = {"settings": dict, "global_step": int, "results": {str: float}, "digest": str}


# What a run is made of

Inputs = collections.namedtuple("Inputs", "config files eval_files vocab_file recipe notes hub")
Inputs.__doc__ = """What a run reads, found and checked. recipe: what it is made of, without its records, which are read last;
notes: lines to print about the vocabulary; hub: the name and commit of a start on the Hub, or None."""


def find_inputs(args):
    """The Inputs that the flags name. Raises UserError where one is missing or does not fit the others."""
    args.init_checkpoint, hub = find_on_hub(args.init_checkpoint, "--init_checkpoint", WEIGHT_FILES[:1])
    start = args.init_checkpoint or ""
    if start:
        folders = [start if os.path.isdir(start) else os.path.dirname(start)]
    else:
        folders = [] if args.do_train else [args.output_dir]  # of the run that is evaluated
    args.bert_config_file = args.bert_config_file or find_config(folders)
    if args.bert_config_file is None:
        raise UserError("--bert_config_file is needed: " + (
            f"there is no {' or '.join(CONFIG_NAMES)} in {folders[0] or '.'}" if folders else
            "there is no --init_checkpoint beside which it could lie"))
    config = BertConfig.from_json_file(args.bert_config_file)
    config.hidden_act = GELUS.get(args.gelu, config.hidden_act)
    config.check_max_seq_length(args.max_seq_length)
    files = expand_files(args.input_file, "--input_file")
    eval_files = expand_files(args.eval_file, "--eval_file") if args.eval_file else []
    vocab_file = find_vocab(args.vocab_file, [os.path.dirname(args.bert_config_file), *folders])
    notes = read_fitting_vocab(vocab_file, config)
    recipe = {f"--{name}": getattr(args, name) for name in RECIPE_FLAGS} | config.identity()
    recipe |= {} if args.next_sentence else {"--next_sentence": False}  # so runs of before there was the flag are gone on with
    recipe |= {} if args.dropout is None else {"--dropout": args.dropout}
    recipe |= {"--init_checkpoint": digest_of_checkpoint(args.init_checkpoint),
               "--vocab_file": vocab_file and digest_of_file(vocab_file)}
    return Inputs(config, files, eval_files, vocab_file, recipe, notes, hub)


def digest_of_checkpoint(prefix):
    """A digest of a checkpoint's index, which has the checksums of all its values, or of PyTorch's weights; None without."""
    files = (prefix, os.path.join(prefix, WEIGHT_FILES[0]), f"{prefix}.index") if prefix else ()
    return next(map(digest_of_file, filter(os.path.isfile, files)), None)


# A run from its flags to its results

def pretrain(args):
    """Trains and evaluates as the checked flags say, in one process or as one of several (TF_CONFIG). Returns whether this is
    the one that prints and writes."""
    inputs, role = find_inputs(args), cluster_role()
    folder = RunFolder(args.output_dir, KIND, OWNED) if role.is_first else None
    with folder.lock() if folder else contextlib.nullcontext():
        if folder:
            earlier = folder.earlier()
            if args.do_train:  # a first look, as if the records were the same: to read them takes TensorFlow, and time
                records = earlier and earlier["recipe"].get("--input_file")
                folder.check(inputs.recipe | {"--input_file": records}, args.overwrite_output_dir)
        # a lost worker is told in one line, below; TensorFlow would tell it in ten
        with tensorflow_start_up(log_level=2 if len(role.addresses) < 2 else 3):
            import tensorflow  # noqa: F401, it takes seconds: only now, when the flags are right
        with one_line_errors(len(role.addresses)):
            run(args, inputs, role, folder)
    return role.is_first


def run(args, inputs, role, folder):
    """The part of `pretrain` that computes. folder: a RunFolder, None in a process that neither prints nor writes."""
    import tensorflow as tf

    from pretraining.checkpoints import describe_variables, keep_newest, start_of_run
    from pretraining.modeling_tf import BertForPreTraining
    from pretraining.optimization_tf import AdamWeightDecay
    from pretraining.records import Records
    from pretraining.training import Pace, Recipe, evaluate, make_evaluation_step, train

    config, say = inputs.config, print if folder else lambda *words: None
    if args.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy, name, devices = make_strategy(args.strategy, role, fields_of(Tpu, args), args.rendezvous_timeout)
    replicas, alone = strategy.num_replicas_in_sync, len(role.addresses) < 2
    began = precision_of(folder.earlier()) if folder and not args.overwrite_output_dir else None
    args.precision, reason = choose_precision(args.precision, began, config.hidden_size, strategy)
    precision = f"{args.precision} ({reason})"
    say("\n".join([f"{inputs.hub} from the Hub, in {args.init_checkpoint}"] * bool(inputs.hub)
                  + [*inputs.notes, f"devices: {devices}", f"precision: {precision}"]))
    if args.do_train and args.train_batch_size % (replicas * args.gradient_accumulation_steps):
        raise UserError(f"--train_batch_size {args.train_batch_size} cannot be split over {replicas} replicas x "
                        f"{args.gradient_accumulation_steps} --gradient_accumulation_steps")

    # Where it starts (the other processes get the first one's values as the variables are made), what is evaluated
    start = start_of_run(config, args.random_seed, folder and not args.overwrite_output_dir and folder.path,
                         folder and args.init_checkpoint, args.do_train)
    final_step = args.num_train_steps if args.do_train else start.step
    final = os.path.join(args.output_dir, f"model.ckpt-{final_step}") if args.do_train else start.prefix

    def read(paths, flag):
        begun = time.perf_counter()
        records = Records(paths, config, args.max_seq_length, args.max_predictions_per_seq, args.next_sentence)
        say(f"{flag}: {len(records)} records in {len(paths)} files, all of them right; read and checked in "
            f"{time.perf_counter() - begun:.1f} s")
        return records

    records = read(inputs.files, "--input_file") if args.do_train or not inputs.eval_files else None
    eval_records = read(inputs.eval_files, "--eval_file") if args.do_eval and inputs.eval_files else records
    if args.do_eval and not inputs.eval_files:
        say("note: no --eval_file, so --do_eval evaluates on the records of --input_file, which are trained on")

    # Whose folder it is, and what is left to do
    to_train = args.do_train and not (alone and start.step == final_step)
    if folder and args.do_train:
        recipe = inputs.recipe | {"--input_file": records.identity}
        found = folder.check(recipe, args.overwrite_output_dir)
        for file in filter(LEFTOVER.fullmatch, os.listdir(folder.path)):
            remove(os.path.join(folder.path, file))
        if found:
            keep_newest(folder.path, args.keep_checkpoint_max, start.step)
        if start.step == final_step:
            print(f"the run is complete, all {start.step} steps are in {folder.path}: nothing to train")
        else:
            flags = vars(args) | {"strategy": f"{name} with {replicas} replicas"}
            prepare_folder(folder, inputs, recipe, found, start.step, flags, {"devices": devices, "precision": precision})
            describe_run(args, config, len(records), start.step, replicas)
    results = None
    if folder and args.do_eval:
        settings = {f"--{name}": getattr(args, name) for name in EVALUATION_FLAGS}
        settings |= {"records": eval_records.identity, "config": config.identity(),
                     "seed of new heads": args.random_seed if start.new and not args.do_train else None}
        settings |= {} if args.next_sentence else {"--next_sentence": False}
        results = read_evaluation(folder.path, settings | {"weights": digest_of_checkpoint(final)})

    # Else all is there. One of several processes cannot see that: it does not know what the first one has in its folder.
    if to_train or args.do_eval and not (alone and results):
        if folder:
            describe_variables(config, start)
        with strategy.scope():
            model = BertForPreTraining(with_dropout(config, args.dropout), start.values,
                                       "bfloat16" if args.precision == "bf16" else "float32", args.next_sentence)
        evaluation = functools.partial(evaluate, strategy, make_evaluation_step(strategy, model), eval_records,
                                       args.eval_batch_size, args.max_eval_steps)
        if to_train:
            with strategy.scope():
                optimizer = AdamWeightDecay(model.variables, args.learning_rate, args.num_train_steps, args.num_warmup_steps,
                                            start.state)
            for held in (start.values, start.state):
                held.clear()  # the variables have them: the first update would copy what is held here too
            train(strategy, model, optimizer, records, fields_of(Recipe, args), fields_of(Pace, args), folder and folder.path,
                  functools.partial(evaluation, show_bar=False) if args.eval_checkpoints else None)
        if args.do_eval:
            evaluated = evaluation(show_bar=bool(folder))
            results = results or evaluated
    if folder and args.do_eval:
        keep_evaluation(folder.path, settings | {"weights": digest_of_checkpoint(final)}, final_step, results, args.report_to)


def with_dropout(config, probability):
    """The configuration with that dropout of states and of attention; None: its own."""
    if probability is None:
        return config
    return dataclasses.replace(config, hidden_dropout_prob=probability, attention_probs_dropout_prob=probability)


def prepare_folder(folder, inputs, recipe, found, step, flags, environment):
    """Writes bert_config.json, vocab.txt and run.json, or in that of the run `found` that it goes on after `step`."""
    if found is None:
        start = {"hub": inputs.hub} if inputs.hub else {}
        folder.begin(recipe, flags, **start, **environment, versions=versions("tensorflow", "numpy"))
        for name in (*WEIGHT_FILES, "config.json"):
            if os.path.exists(os.path.join(folder.path, name)):
                print(f"note: {os.path.join(folder.path, name)} is from before this run: convert its checkpoint, too, before "
                      "you fine-tune")
    elif note := folder.resume(found, step, flags, WATCHED_FLAGS):
        print(note)
    inputs.config.write(os.path.join(folder.path, "bert_config.json"))
    if inputs.vocab_file:
        carry_vocab(inputs.vocab_file, folder.path)
    else:
        print("note: no --vocab_file and no vocab.txt beside the config or checkpoint, so none is copied")


def describe_run(args, config, num_records, start, replicas):
    """Prints what follows from the flags: batch, steps, epochs, parameters."""
    accumulation = args.gradient_accumulation_steps
    epochs = args.num_train_steps * args.train_batch_size / num_records
    print(f"model: hidden_act {config.hidden_act}, {args.precision}{', XLA' if args.xla else ''}\n"
          f"batch: {args.train_batch_size} sequences an update = {replicas} replicas x {accumulation} micro-batches x "
          f"{args.train_batch_size // (replicas * accumulation)}\n"
          f"steps: {start} to {args.num_train_steps}, {epochs:.2f} epochs over {num_records} records; "
          f"warm-up {args.num_warmup_steps}, peak learning rate {args.learning_rate:g}")
    if args.num_warmup_steps >= args.num_train_steps:
        print("note: --num_warmup_steps is not below --num_train_steps, so the peak learning rate is never reached")


# The evaluation's record

def read_evaluation(output_dir, settings):
    """The results (name -> float) of the folder's evaluation; None where it was made with other settings."""
    path = os.path.join(output_dir, "evaluation.json")
    if not os.path.exists(path):
        return None
    try:
        found = read_json(path, EVALUATION_SCHEMA)
    except UserError as error:
        print(f"{error}; evaluating again")
        return None
    is_whole = found["digest"] == digest_of_results(found["results"])  # else a digit is not what was measured
    return found["results"] if is_whole and found["settings"] == settings else None


def digest_of_results(results):
    return digest(json.dumps(results, sort_keys=True))


def keep_evaluation(output_dir, settings, step, results, report_to):
    """Writes an evaluation, whatever of it is not there yet, and prints it. metrics.jsonl keeps the earlier ones."""
    values = {"global_step": step} | {name: f"{value:.7g}" for name, value in results.items()}
    text = "".join(f"{key} = {value}\n" for key, value in sorted(values.items()))
    path = pathlib.Path(output_dir, "eval_results.txt")
    if not path.exists() or path.read_bytes() != text.encode():
        write_key_values(path, values)
    if not read_evaluation(output_dir, settings):
        write_json(os.path.join(output_dir, "evaluation.json"),
                   {"settings": settings, "global_step": step, "results": results, "digest": digest_of_results(results)})
    line, found = {"kind": "eval", "global_step": step} | results, []
    # it keeps all lines, and shows them here
    with MetricsLog(output_dir, lambda kept: not (kept == line and found.append(kept)), report_to=report_to) as log:
        if not found:
            log.write("eval", step, results)
    print(f"{path}:\n{text}", end="")
