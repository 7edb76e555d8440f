"""Which precision this machine's processor multiplies natively, asked of the system: no framework is imported."""
import pathlib

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


def native_bf16_cpu() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself: without, they are taken apart to float32 and are slower."""
    return bf16_instructions() is not None
