"""AdamWeightDecay and its schedule in TensorFlow 2, as google-research/bert's optimization.py computes them.

    optimizer = AdamWeightDecay(model.variables, learning_rate=5e-5, num_train_steps=100000, num_warmup_steps=10000)
    gradient_norm = optimizer.apply(gradients)

Adam without bias correction; the weight decay is added to the update, not to the gradient, and spares LayerNorm and biases; the
gradient is clipped to norm 1 over all variables together.
"""
import tensorflow as tf

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-6
WEIGHT_DECAY, CLIP_NORM = 0.01, 1.0
NOT_DECAYED = ("LayerNorm", "layer_norm", "bias")  # a variable with one of these in its name
SLOTS = ("adam_m", "adam_v")  # the running means of gradient and squared gradient


def learning_rate_at(step, learning_rate, num_train_steps, num_warmup_steps):
    """The rate (float32 scalar) of update `step`, from 0: learning_rate * step / num_warmup_steps while step is below
    num_warmup_steps, then learning_rate * (1 - step / num_train_steps), so 0 from num_train_steps on."""
    step = tf.cast(step, tf.float32)
    decayed = learning_rate * (1.0 - tf.minimum(step, float(num_train_steps)) / float(num_train_steps))
    if not num_warmup_steps:
        return decayed
    return tf.where(step < num_warmup_steps, learning_rate * (step / float(num_warmup_steps)), decayed)


def is_decayed(name):
    """Whether the variable `name` has weight decay."""
    return not any(part in name for part in NOT_DECAYED)


class AdamWeightDecay:
    """The optimizer of `variables` (name -> tf.Variable), its slots `<name>/adam_m`, `<name>/adam_v` and global_step.

    state: name -> value of slots and global_step of a checkpoint to go on from; without it all start at 0.
    `apply` runs on each replica on its own; what it is given must be the same everywhere.
    """

    def __init__(self, variables, learning_rate, num_train_steps, num_warmup_steps, state=None):
        self.variables, self.schedule = variables, (learning_rate, num_train_steps, num_warmup_steps)
        state = state or {}
        self.slots = {f"{name}/{slot}": tf.Variable(state.get(f"{name}/{slot}", tf.zeros(variable.shape)),
                                                    name=f"{name}/{slot}", dtype=tf.float32, trainable=False)
                      for name, variable in variables.items() for slot in SLOTS}
        self.global_step = tf.Variable(state.get("global_step", 0), name="global_step", dtype=tf.int64, trainable=False)

    def state(self):
        """Name -> variable of the slots and global_step: what a checkpoint holds beside the model's variables."""
        return self.slots | {"global_step": self.global_step}

    def learning_rate(self):
        """The rate of the next update."""
        return learning_rate_at(self.global_step, *self.schedule)

    def apply(self, gradients):
        """Makes one update with `gradients` (dense tensors, one for each variable, in order; None leaves a variable and its
        slots as they are), then counts it in global_step. Returns the gradient's norm before clipping."""
        norm = tf.linalg.global_norm(gradients)
        gradients, _ = tf.clip_by_global_norm(gradients, CLIP_NORM, use_norm=norm)
        rate = self.learning_rate()
        # each variable's new slots are computed before either is assigned: an assignment would show in what follows it
        for (name, variable), gradient in zip(self.variables.items(), gradients, strict=True):
            if gradient is None:
                continue
            first, second = self.slots[f"{name}/adam_m"], self.slots[f"{name}/adam_v"]
            next_first = BETA_1 * first + (1.0 - BETA_1) * gradient
            next_second = BETA_2 * second + (1.0 - BETA_2) * tf.square(gradient)
            update = next_first / (tf.sqrt(next_second) + EPSILON)
            if is_decayed(name):
                update += WEIGHT_DECAY * variable
            variable.assign_sub(rate * update)
            first.assign(next_first)
            second.assign(next_second)
        self.global_step.assign_add(1)
        return norm
