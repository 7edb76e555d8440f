"""Writes the sample that ships with the code: labelled news in AG's News format, and a WordPiece vocabulary for it.

The stories are invented: the sentence patterns below, filled with the words of `data/sample_words.json`. A story has a
topic (1 world, 2 sports, 3 business, 4 science/technology) and a beat within it (elections, tennis, ...). Most of its words
are the beat's, a few the whole topic's or another topic's, and the rest could stand anywhere. The patterns are the same for
all topics, so only the words tell; and as words of a beat keep company in every pattern, texts without labels tell which
words belong together. One story in four opens with sentences that could be about anything; one in eight is about two topics,
and its label names one of them. The noise of AG's News is there too.

General stories are of the same kind about other beats (cooking, music, ...) and have no label: what `data/tiny_bert` was
pre-trained on. They are written on demand, and their words are in the vocabulary.

The same seed gives the same bytes on every machine. The committed sample (1,600 and 400 stories, 3,000 tokens), and another:

    python data/make_sample.py
    python data/make_sample.py --num_train 200 --num_test 100 --seed 7 --vocab_size 1000 --output_dir tmp/sample
"""
import csv
import os
import random
import re
import string
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(FOLDER))  # the scripts of the pipeline are no installed package
from common.command_line import ArgumentParser, UserError, command, number, path, run  # noqa: E402
from common.files import atomic_write, check_output_file, check_output_folder, read_json  # noqa: E402

SAMPLE = os.path.join(FOLDER, "sample")
WORDS = os.path.join(FOLDER, "sample_words.json")
TOPICS = ("world", "sports", "business", "science")  # label 1, 2, 3, 4, as in AG's News
GENERAL = "general"                                   # the topic of stories without a label
GENERAL_STORIES = 4                                   # for each story of train.csv
SLOTS = ("agents", "things", "acts", "settings")
NOUNS = ("agents", "things")  # stand in each other's place, so that a word's neighbours tell its beat and not its slot
# These numbers put the accuracy of a classifier of the words between 75% and 95% (tests/test_sample.py).
FROM_TOPIC, FROM_OTHER_TOPICS = 0.75, 0.05  # where a word comes from; the rest is shared by all topics
COMMON = 0.12                               # how often a topic's word is common to its beats, rather than the beat's own
QUIET_OPENING, AMBIGUOUS = 1 / 4, 1 / 8     # shares of the stories
AT_HOME = 0.6                               # how often a person is one of the beat's, rather than anybody
RETURNING = 0.1                             # how often a thing or an agent is one that the story has mentioned

TITLES = ("{agent} {act} {thing}", "{place} {agent} {act} {thing}", "{thing} {setting}",
          "{thing} divides {agent} and {agent2}", "{thing} and {thing2}", "{person} and the {thing} of {place}")
SENTENCES = (
    "The {agent} {act} the {thing} {setting}.", "{setting}, the {agent} {act} the {thing}.",
    "The {agent} and the {agent2} {act} the {thing}.", "The {agent} {act} the {thing} and the {thing2}.",
    "{person} {act} the {thing} {setting}.", "The {thing} and the {thing2} came {setting}.",
    "The {agent} {act} and {act2} the {thing}.", "In {place}, the {agent} {act} the {thing}.",
    "A {agent} {act} a {thing}, {person} said.", "\"It was a {thing},\" said the {agent} from {place}.",
    "First the {thing}, then the {thing2}: {person} had seen it all {setting}.",
    "Nobody {act} the {thing} like the {agent} of {place}.",
    "There was talk of a {thing}, of a {thing2} and of the {agent} {setting}.",
    "For the {agent}, the {thing} matters more than the {thing2}.",
    "What the {agent} {act} {setting} was the {thing}.",
    "The {thing} that the {agent} {act} belongs to {person}.",
    "Without the {agent}, no {thing} and no {thing2} {setting}.",
    "{person}, once a {agent}, {act} and {act2} it {setting}.",
    "Not every {agent} {act} a {thing} {setting}.",
    "A {thing}, a {thing2}, a {agent}: {place} has little else.")
AGENCIES = ("AP", "Reuters", "AFP")


def read_words():
    """The word lists: {topic: {beat: {slot: words}}}, "common" being a beat and "general" a topic, too; beside the topics
    "shared", {slot: words of every topic}, and "names", {part of a name: syllables}."""
    slots = dict.fromkeys(SLOTS, str)
    parts = dict.fromkeys(("person_starts", "person_middles", "person_ends", "place_starts", "place_ends"), str)
    topics = dict.fromkeys((*TOPICS, GENERAL), {"common": slots, str: slots})
    lists = read_json(WORDS, topics | {"shared": slots, "names": parts})

    def split(value):
        if isinstance(value, str):
            return [word.strip() for word in value.split(",")]
        return {key: split(part) for key, part in value.items()}
    return split(lists)


def pick(rng, options):
    """One of `options`, by `random()` alone: the only draw that Python promises not to change between versions."""
    return options[int(rng.random() * len(options))]


def shuffle(rng, items):
    """Shuffles a list in place (Fisher and Yates)."""
    for last in range(len(items) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        items[last], items[other] = items[other], items[last]


def invent(rng, words, *parts):
    """The name of a person or a place."""
    return string.capwords("".join(pick(rng, words["names"][part]) for part in parts))


class Story:
    """The words of one story."""

    def __init__(self, rng, topic, words):
        self.rng, self.words, self.topic = rng, words, topic
        self.others = [other for other in TOPICS if other != topic] if topic in TOPICS else [topic]
        self.beat = self.pick_beat(topic)
        self.rival = pick(rng, self.others) if rng.random() < AMBIGUOUS else None
        everybody = [person for people in words["people"].values() for person in people]
        self.people = [pick(rng, words["people"][self.beat] if rng.random() < AT_HOME else everybody) for _ in range(2)]
        self.place = invent(rng, words, "place_starts", "place_ends")
        self.things = [self.word("things") for _ in range(2)]
        self.agents = [self.word("agents") for _ in range(2)]

    def pick_beat(self, topic):
        return pick(self.rng, [beat for beat in self.words[topic] if beat != "common"])

    def word(self, slot):
        """A word for `slot`: one that all topics share, one of the topic (or of its rival), or another topic's."""
        draw = self.rng.random()
        slots = NOUNS if slot in NOUNS else (slot,)
        if draw >= FROM_TOPIC + FROM_OTHER_TOPICS:
            return pick(self.rng, [word for slot in slots for word in self.words["shared"][slot]])
        topic = self.topic
        if draw >= FROM_TOPIC:
            topic = pick(self.rng, self.others)
        elif self.rival and self.rng.random() < 0.5:
            topic = self.rival
        beat = self.beat if topic == self.topic else self.pick_beat(topic)
        beat = "common" if self.rng.random() < COMMON else beat
        return pick(self.rng, [word for slot in slots for word in self.words[topic][beat][slot]])

    def say(self, patterns, quiet):
        """Fills one of `patterns`; a `quiet` sentence takes all its words from those that every topic shares."""
        def draw(slot, known=()):
            if quiet:
                return pick(self.rng, self.words["shared"][slot])
            return pick(self.rng, known) if known and self.rng.random() < RETURNING else self.word(slot)
        text = pick(self.rng, patterns).format(
            agent=draw("agents", self.agents), agent2=draw("agents", self.agents), act=draw("acts"), act2=draw("acts"),
            thing=draw("things", self.things), thing2=draw("things", self.things), setting=draw("settings"),
            person=pick(self.rng, self.people), place=self.place)
        text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
        return text[0].upper() + text[1:]


def add_noise(rng, title, description):
    """The marks that its authors' crawl left in AG's News, in almost half of the stories."""
    draw = rng.random()
    if draw < 0.12:
        agency = pick(rng, AGENCIES)
        title, description = f"{title} ({agency})", f"{agency} - {description}"
    elif draw < 0.18:
        title, description = f"{title} &lt;b&gt;...&lt;/b&gt;", f"&lt;b&gt;...&lt;/b&gt; {description}"
    elif draw < 0.26:
        description = description.replace('"', " quot;")
    elif draw < 0.32:
        place = int(rng.random() * len(description))
        description = description[:place] + description[place:].replace(" ", "\\", 1)
    elif draw < 0.36:
        description += f" The cost was \\${1 + int(rng.random() * 900)} million."
    elif draw < 0.46:
        title = title.replace(" of ", " #39;s ") if " of " in title else f"{title} - it #39;s official"
    return title, description


def write_story(rng, topic, words):
    """One (title, list of two to five sentences)."""
    story = Story(rng, topic, words)
    num_sentences = 2 + int(rng.random() * 4)
    num_quiet = (1 + int(rng.random() * (num_sentences - 1))) if rng.random() < QUIET_OPENING else 0
    title = story.say(TITLES, quiet=num_quiet > 0)
    sentences = [story.say(SENTENCES, quiet=index < num_quiet) for index in range(num_sentences)]
    return string.capwords(title) if rng.random() < 0.5 else title, sentences


def with_people(rng, words):
    """`words` with the persons who mostly appear in a beat, eight each."""
    return words | {"people": {
        beat: [invent(rng, words, "person_starts", "person_middles", "person_ends") for _ in range(8)]
        for topic in (*TOPICS, GENERAL) for beat in words[topic] if beat != "common"}}


def make_rows(num_train, num_test, seed):
    """The training and the test rows: two lists of (label "1" to "4", title, description), the labels balanced."""
    rng = random.Random(seed)
    words = with_people(rng, read_words())
    rows = []
    for index in range(num_train + num_test):
        title, sentences = write_story(rng, TOPICS[index % len(TOPICS)], words)
        rows.append((str(1 + index % len(TOPICS)), *add_noise(rng, title, " ".join(sentences))))
    train, test = rows[:num_train], rows[num_train:]
    shuffle(rng, train)
    shuffle(rng, test)
    return train, test


def make_general_stories(num_stories, seed):
    """General stories, each a list of its title and its sentences."""
    rng = random.Random(f"general {seed}")
    words = with_people(rng, read_words())
    return [[title, *sentences] for title, sentences in (write_story(rng, GENERAL, words) for _ in range(num_stories))]


def parse_arguments():
    parser = ArgumentParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--num_train", type=number(int, minimum=4), default=1600,
                      help="Number of stories in train.csv. Default: 1600.")
    data.add_argument("--num_test", type=number(int, minimum=4), default=400,
                      help="Number of stories in test.csv. Default: 400.")
    data.add_argument("--seed", type=int, default=2019, help="Seed of the stories. Default: 2019.")
    data.add_argument("--vocab_size", type=number(int, minimum=200, maximum=1_000_000), default=3000,
                      help="Tokens in the vocabulary, including the special ones. Default: 3000.")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=path, default=SAMPLE,
                        help="Folder for train.csv and test.csv. Default: the folder sample beside this script.")
    output.add_argument("--vocab_file", type=path, help="File for the vocabulary. Default: vocab.txt in --output_dir; "
                        "tiny_bert/vocab.txt beside this script where --output_dir is the default.")
    output.add_argument("--general_file", type=path, help="File for general stories, four for each of train.csv, as a corpus "
                        "of create_pretraining_data.py. Default: none.")
    args = parser.parse_args()
    beside = os.path.join(FOLDER, "tiny_bert") if args.output_dir == SAMPLE else args.output_dir
    args.vocab_file = args.vocab_file or os.path.join(beside, "vocab.txt")
    return args


def main():
    args = parse_arguments()
    check_output_folder(args.output_dir, "--output_dir")
    check_output_file(args.vocab_file, "--vocab_file")
    if args.general_file:
        check_output_file(args.general_file, "--general_file")
    train, test = make_rows(args.num_train, args.num_test, args.seed)
    general = make_general_stories(GENERAL_STORIES * args.num_train, args.seed)
    from tokenization import normalize, train_vocab  # takes a while: wrong flags are refused before
    texts = [f"{title} - {description}" for _, title, description in train] + list(map(" ".join, general))
    tokens = train_vocab(lambda: (normalize(text, True) for text in texts), args.vocab_size, num_unused=0)
    if len(tokens) != args.vocab_size:
        raise UserError(f"--vocab_size {args.vocab_size}: {args.num_train} stories give {len(tokens)} tokens; ask for "
                        "fewer tokens, or for more stories with --num_train")
    for name, rows in (("train.csv", train), ("test.csv", test)):
        with atomic_write(os.path.join(args.output_dir, name)) as file:  # as Zhang et al.: all fields quoted, no header
            csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
        print(f"wrote {os.path.join(args.output_dir, name)}: {len(rows)} stories")
    with atomic_write(args.vocab_file) as file:
        file.writelines(token + "\n" for token in tokens)
    print(f"wrote {args.vocab_file}: {len(tokens)} tokens")
    if args.general_file:
        with atomic_write(args.general_file) as file:
            file.writelines("\n".join(story) + "\n\n" for story in general)
        print(f"wrote {args.general_file}: {len(general)} general stories, one sentence a line")
    print(f"next: {command('generate_corpus_agnews.py', data_dir=args.output_dir)}")


if __name__ == "__main__":
    run(main)
