"""The choices of --precision, and which one this machine's processor multiplies natively: no framework is imported."""
import pathlib

PRECISIONS = ("auto", "float32", "tf32", "bf16")
BF16_HIDDEN_SIZE = 128  # from which on a CPU saves more by bfloat16 products than it loses by rounding (docs/performance.md)
CPUINFO = pathlib.Path("/proc/cpuinfo")
BF16_FLAGS = ("amx_bf16", "avx512_bf16")  # Linux's names of the instructions, the fastest first


def bf16_instructions():
    """The name of the processor's instructions that multiply bfloat16 numbers, one of BF16_FLAGS; None where it has none, or
    where the system (not Linux) has no /proc/cpuinfo to say so."""
    if not CPUINFO.exists():
        return None
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ())
    return next((flag for flag in BF16_FLAGS if flag in flags), None)


def auto_on_cpu(hidden_size):
    """(whether --precision auto is bf16 for a model of that width on this processor, the reason in words)."""
    instructions = bf16_instructions()
    if not instructions:
        return False, "a CPU without bfloat16 instructions"
    if hidden_size < BF16_HIDDEN_SIZE:
        return False, f"a CPU with {instructions}, a model narrower than {BF16_HIDDEN_SIZE}"
    return True, f"a CPU with {instructions}"


def precision_of(found):
    """The precision of the run of which `found` is the run.json, None where it is None; --bf16 was the flag before."""
    if found is None:
        return None
    flags = [found, *found.get("resumed", [])][-1]["flags"]
    precision = flags.get("precision", "bf16" if flags.get("bf16") else "float32")
    return precision if precision in PRECISIONS[1:] else None
