"""The making of instances in plain Python, line by line as google-research/bert's: what the compiled functions are held to.

    plain_records(corpus, tokenizer, Recipe(), dupe_factor=5, rng=random.Random(12345))

A line that draws a random number may not move.
"""
import bisect

from pretraining.instances import SPECIAL_TOKENS


def truncate_seq_pair(a, b, max_num_tokens, rng):
    """Shortens the longer of two spans (start, end), at a random end each time, until both fit in max_num_tokens."""
    (a_start, a_end), (b_start, b_end) = a, b
    while (a_end - a_start) + (b_end - b_start) > max_num_tokens:
        at_front = rng.random() < 0.5
        if a_end - a_start > b_end - b_start:
            a_start, a_end = (a_start + 1, a_end) if at_front else (a_start, a_end - 1)
        else:
            b_start, b_end = (b_start + 1, b_end) if at_front else (b_start, b_end - 1)
    return (a_start, a_end), (b_start, b_end)


class Masking:
    """The masking of the tokens of an instance (Devlin et al. 2019, section 3.1)."""

    def __init__(self, tokenizer, recipe):
        self.recipe = recipe
        self.mask_id = tokenizer.mask_id
        self.vocab_ids = list(tokenizer.vocab.values())  # in the order of the file: what a random word is drawn from
        self.is_continuation = bytearray(max(self.vocab_ids) + 1)
        for token, index in tokenizer.vocab.items():
            self.is_continuation[index] = token.startswith("##")

    def candidates(self, ids, first_segment_length):
        """Lists of positions that are masked together: one token each, or with whole word masking one word each."""
        positions = [*range(1, first_segment_length - 1), *range(first_segment_length, len(ids) - 1)]
        if not self.recipe.do_whole_word_mask:
            return [(position,) for position in positions]
        words = []
        for position in positions:
            # A truncated segment may begin inside a word; that piece joins the word before it, as in Google's script.
            if words and self.is_continuation[ids[position]]:
                words[-1].append(position)
            else:
                words.append([position])
        return words

    def __call__(self, ids, first_segment_length, rng):
        """Masks the list `ids` in place: 80% [MASK], 10% kept, 10% a random word of the vocabulary. Returns (positions,
        labels): where predictions are made, ascending, and the ids that stood there."""
        words = self.candidates(ids, first_segment_length)
        rng.shuffle(words)
        num_to_predict = min(self.recipe.max_predictions_per_seq, max(1, int(round(len(ids) * self.recipe.masked_lm_prob))))
        labels = {}
        for word in words:
            if len(labels) >= num_to_predict:
                break
            if len(labels) + len(word) > num_to_predict:
                continue  # a shorter word may still fit
            for position in word:
                labels[position] = ids[position]
                if rng.random() < 0.8:
                    ids[position] = self.mask_id
                elif rng.random() >= 0.5:
                    ids[position] = self.vocab_ids[rng.randint(0, len(self.vocab_ids) - 1)]
        positions = sorted(labels)
        return positions, [labels[position] for position in positions]


def random_next(corpus, order, document_index, target_length, rng):
    """A span (start, end) of ids from a random sentence of another document on, sentences until target_length."""
    for _ in range(10):  # with two documents or more ten failures in a row are rare, and Google's script accepts them
        random_index = rng.randint(0, corpus.num_documents - 1)
        if random_index != document_index:
            break
    first, last = corpus.document_offsets[order[random_index]], corpus.document_offsets[order[random_index] + 1]
    sentence = first + rng.randint(0, last - first - 1)
    start = corpus.sentence_offsets[sentence]
    end = bisect.bisect_left(corpus.sentence_offsets, start + target_length, sentence + 1, last)
    return start, corpus.sentence_offsets[end]


def draw_target_length(recipe, max_num_tokens, rng):
    """How many tokens the instances of a document are to have: the maximum, or now and then fewer."""
    is_short = rng.random() < recipe.short_seq_prob
    return rng.randint(2, max_num_tokens) if is_short else max_num_tokens


def add_pairs(instances, corpus, order, document_index, tokenizer, masking, rng):
    """Appends the instances of document order[document_index] of the corpus to `instances`. Sentences are gathered until they
    fill an instance; A is a random number of the first ones. In half of the instances B is the rest of them; otherwise it comes
    from another document, and the rest is used again."""
    offsets, ids = corpus.sentence_offsets, corpus.ids
    max_num_tokens = masking.recipe.max_seq_length - SPECIAL_TOKENS
    target_length = draw_target_length(masking.recipe, max_num_tokens, rng)
    first, last = corpus.document_offsets[order[document_index]], corpus.document_offsets[order[document_index] + 1]
    chunk, sentence = first, first
    while sentence < last:
        if sentence == last - 1 or offsets[sentence + 1] - offsets[chunk] >= target_length:
            chunk_length = sentence + 1 - chunk
            middle = chunk + (rng.randint(1, chunk_length - 1) if chunk_length >= 2 else 1)
            # from here on rng is asked in Google's order: random or not, document, sentence, truncation, masks
            a, b = (offsets[chunk], offsets[middle]), (offsets[middle], offsets[sentence + 1])
            is_random_next = chunk_length == 1 or rng.random() < 0.5
            if is_random_next:
                b = random_next(corpus, order, document_index, target_length - (a[1] - a[0]), rng)
                sentence = middle - 1  # the sentences that would have followed A are used again
            (a_start, a_end), (b_start, b_end) = truncate_seq_pair(a, b, max_num_tokens, rng)
            instance = [tokenizer.cls_id, *ids[a_start:a_end].tolist(), tokenizer.sep_id,
                        *ids[b_start:b_end].tolist(), tokenizer.sep_id]
            first_segment_length = a_end - a_start + 2
            positions, labels = masking(instance, first_segment_length, rng)
            instances.append((instance, first_segment_length, positions, labels, is_random_next))
            chunk = sentence + 1
        sentence += 1


def add_packed(instances, corpus, order, document_index, tokenizer, masking, rng):
    """The same for the masked LM alone: [CLS] A [SEP], A being as many whole sentences as fit; one that does not fit alone is
    cut and goes on in the next instance, so that each token of the document stands in one instance."""
    offsets = corpus.sentence_offsets
    target_length = draw_target_length(masking.recipe, masking.recipe.max_seq_length - SPECIAL_TOKENS + 1, rng)
    first, last = corpus.document_offsets[order[document_index]], corpus.document_offsets[order[document_index] + 1]
    start = offsets[first]
    while start < offsets[last]:
        end = offsets[bisect.bisect_right(offsets, start + target_length, first, last + 1) - 1]
        end = end if end > start else start + target_length
        instance = [tokenizer.cls_id, *corpus.ids[start:end].tolist(), tokenizer.sep_id]
        instances.append((instance, len(instance), *masking(instance, len(instance), rng), False))
        start = end


def features(recipe, ids, first, positions, labels, is_random_next):
    """The padded features of an instance, a dict of lists."""
    padding, no_prediction = [0] * (recipe.max_seq_length - len(ids)), [0] * (recipe.max_predictions_per_seq - len(labels))
    return {"input_ids": ids + padding,
            "input_mask": [1] * len(ids) + padding,
            "segment_ids": [0] * first + [1] * (len(ids) - first) + padding,
            "masked_lm_positions": positions + no_prediction,
            "masked_lm_ids": labels + no_prediction,
            "masked_lm_weights": [1.0] * len(labels) + [0.0] * len(no_prediction)} | (
                {"next_sentence_labels": [int(is_random_next)]} if recipe.next_sentence else {})


def plain_records(corpus, tokenizer, recipe, dupe_factor, rng):
    """The features of all instances of a corpus in the order in which they are written; rng is used up."""
    corpus = corpus._replace(sentence_offsets=corpus.sentence_offsets.tolist(),
                             document_offsets=corpus.document_offsets.tolist())
    order = list(range(corpus.num_documents))
    rng.shuffle(order)
    instances, masking = [], Masking(tokenizer, recipe)
    add_document = add_pairs if recipe.next_sentence else add_packed
    for _ in range(dupe_factor):
        for document_index in range(corpus.num_documents):
            add_document(instances, corpus, order, document_index, tokenizer, masking, rng)
    rng.shuffle(instances)
    return [features(recipe, *instance) for instance in instances]
