"""Two tasks on sound: voice activity on synthetic speech in noise, notes of synthetic music.

Speech comes from espeak-ng (a Debian package), voices and sentences of the test apart from those to
calibrate on; pauses, noise and hum lie between and beneath. Music is sums of harmonics under
envelopes; instruments of the test have other harmonics."""

from __future__ import annotations

import functools
import io
import shutil
import subprocess
import wave

import numpy as np
from numpy.typing import NDArray
from shipped import shipped
from task import Feed, Run, Task, agreement, pool_of

import irprune

__all__ = ["NOTES", "VOICE"]

Array = NDArray[np.float32]
VOICES = (
    ("en-us+m1", "en-us+f2", "de+m3", "fr+f1", "es+m2", "it+f3", "nl+m4", "pl+f5"),
    ("en-gb+m7", "en-gb+f4", "pt+m5", "sv+f2", "ru+m6", "cs+f3"),
)
RATE, FRAME, CONTEXT = 16000, 512, 64


def spoken(text: str, voice: str, speed: int) -> Array:
    """``text`` as samples at 16 kHz. Raises IrpruneError without espeak-ng."""
    from scipy.signal import resample_poly

    if shutil.which("espeak-ng") is None:
        raise irprune.IrpruneError(
            "espeak-ng is not installed", "", "apt-get install espeak-ng, or the like"
        )
    made = subprocess.run(
        ["espeak-ng", "-v", voice, "-s", str(speed), "--stdout", text],
        capture_output=True,
        check=True,
    )
    with wave.open(io.BytesIO(made.stdout.replace(b"\xff\xff\xff\x7f", b"\x00\x00\x00\x10"))) as f:
        rate = f.getframerate()
        raw = np.frombuffer(f.readframes(f.getnframes()), dtype=np.int16)
    common = np.gcd(rate, RATE)
    return np.asarray(
        resample_poly(raw.astype(np.float64) / 32768, RATE // common, rate // common), np.float32
    )


def clip(part: int, random: np.random.Generator) -> Array:
    """Some seconds of sound: two sentences, pauses around them, noise and hum beneath."""
    texts, voices = pool_of(part, 40), VOICES[part]
    pieces = []
    for _ in range(2):
        text = texts[random.integers(len(texts))][:90]
        speech = spoken(text, voices[random.integers(len(voices))], int(random.integers(130, 200)))
        speech = speech[: 3 * RATE] * random.uniform(0.1, 1.0)
        pieces += [np.zeros(int(random.uniform(0.3, 1.5) * RATE), np.float32), speech]
    sound = np.concatenate([*pieces, np.zeros(RATE // 2, np.float32)])
    level = 10 ** random.uniform(-4, -1.5)
    white = random.standard_normal(len(sound))
    brown = np.cumsum(random.standard_normal(len(sound)))
    brown -= np.convolve(brown, np.ones(400) / 400, "same")
    hum = np.sin(2 * np.pi * random.uniform(50, 400) * np.arange(len(sound)) / RATE)
    share = random.dirichlet(np.ones(3))
    below = share[0] * white + share[1] * brown / (brown.std() + 1e-9) + share[2] * hum
    return np.clip(sound + level * below, -1, 1).astype(np.float32)


def frames(sound: Array) -> Feed:
    """The call on a whole clip: frames of 512 samples, each behind the last 64 before it."""
    count = len(sound) // FRAME
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), sound[: count * FRAME]])
    at = np.arange(count)[:, None] * FRAME + np.arange(CONTEXT + FRAME)
    state = np.zeros((1, 1, 128), np.float32)
    return {"input": padded[at], "h": state, "c": state}


def _clips(part: int, seed: int, count: int) -> list[Feed]:
    random = np.random.default_rng([part, seed])
    return [frames(clip(part, random)) for _ in range(count)]


@functools.cache
def _voice_test() -> list[Feed]:
    return _clips(1, 1000, 24)


def _voiced(run: Run) -> list[Array]:
    return [run(feed)[0] > 0.5 for feed in _voice_test()]


VOICE = Task(
    "voice activity",
    lambda: shipped("voice activity"),
    lambda seed: _clips(0, seed, 16),
    lambda: _clips(0, 0, 1)[0],
    _voiced,
    agreement,
    "frames that agree",
    {0.5: 0.99},
    note=lambda voiced: f"{np.concatenate(voiced).mean():.0%} of frames are speech",
)

# -- notes -----------------------------------------------------------------------------------------

MUSIC, WINDOW = 22050, 43844


def window(part: int, random: np.random.Generator) -> Array:
    """Two seconds of music: chords and runs of one or two instruments."""
    time = np.arange(WINDOW) / MUSIC
    sound = 1e-3 * random.standard_normal(WINDOW)
    for _ in range(random.integers(1, 3)):
        # Instruments of the test have odd harmonics above all, and other decays
        count = int(random.integers(3, 12))
        strength = random.uniform(0.2, 1, count) / np.arange(1, count + 1) ** random.uniform(0.5, 2)
        if part:
            strength[1::2] *= random.uniform(0, 0.4)
        decay = random.uniform(0.2, 1.0) if part else random.uniform(0.8, 6)
        for _ in range(random.integers(3, 9)):
            start, length = random.uniform(0, 1.8), random.uniform(0.1, 1.2)
            pitch = 440 * 2 ** ((random.integers(36, 84) - 69) / 12)
            since = time - start
            on = (since > 0) & (since < length)
            shape = np.where(on, np.minimum(since / 0.01, 1) * np.exp(-decay * since), 0)
            tone = sum(
                s * np.sin(2 * np.pi * pitch * (k + 1) * since)
                for k, s in enumerate(strength)
                if pitch * (k + 1) < MUSIC / 2
            )
            sound = sound + random.uniform(0.05, 0.3) * shape * tone
    peak = max(1.0, float(np.abs(sound).max()))
    return (sound / peak).astype(np.float32)[:, None]


def _windows(part: int, seed: int, count: int) -> Array:
    random = np.random.default_rng([2 + part, seed])
    return np.stack([window(part, random) for _ in range(count)])


_SOUND = "serving_default_input_2:0"


@functools.cache
def _music_test() -> Array:
    return _windows(1, 1000, 32)


def _activations(run: Run) -> list[Array]:
    """Each of the three maps (notes, onsets, contours) of every window as one row."""
    said = [run({_SOUND: w[None]}) for w in _music_test()]
    return [np.concatenate([one[k].reshape(-1) for one in said]) for k in range(3)]


def _correlation(ours: list[Array], theirs: list[Array]) -> float:
    """The least over the three maps."""
    return min(float(np.corrcoef(a, b)[0, 1]) for a, b in zip(ours, theirs, strict=True))


NOTES = Task(
    "notes from audio",
    lambda: shipped("notes"),
    lambda seed: [{_SOUND: _windows(0, seed, 32)}],
    lambda: {_SOUND: _windows(0, 0, 1)},
    _activations,
    _correlation,
    "correlation of activations, the least of three maps",
    {0.7: 0.98},
)
