"""Batches go to a GPU ahead of the computation."""
import concurrent.futures

import torch


def moved_ahead(batches, device):
    """Yields each PackedBatch of an iterable on `device`, in their order.

    On a GPU the next one is made, pinned and copied, by a thread and on a stream of its own, while this one is computed: a
    GPU waits neither for the host's packing nor for a copy. On a CPU, which has nothing to wait for, each is made when it is
    asked for. An error of the iterable is raised where the batch is asked for.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    batches, stream = iter(batches), torch.cuda.Stream(device)

    def move():
        if (batch := next(batches, None)) is None:
            return None
        with torch.cuda.stream(stream):
            return batch.to(device), stream.record_event()

    # a thread begins on GPU 0, where it would open a context, whatever GPU the process has
    with concurrent.futures.ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,)) as executor:
        coming = executor.submit(move)
        while arrived := coming.result():
            coming = executor.submit(move)
            batch, copied = arrived
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for tensor in batch.tensors():
                tensor.record_stream(current)  # else its memory would be given to the next copy while it is read here
            yield batch
