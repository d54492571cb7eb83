"""Boxes to training samples: in a seeded order, cropped and varied, ahead of the network and never in another order.

What a sample is made of depends on (seed, epoch, box) alone; neither threads nor batches nor processes change it.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.domain.boxes import Box
from tasks.domain.errors import ImageError
from tasks.domain.images import Image
from tasks.domain.spec_train_mal import MalAugmentationSpec
from tasks.domain.training_boxes import LabelledBoxes
from tasks.models.mal.augmentations import RECIPE, distort, mirror
from tasks.models.mal.crops import Margins, crop_box, crop_image, expand, normalise

Pixels: TypeAlias = NDArray[np.uint8]
Reader: TypeAlias = Callable[[Image], Pixels]  # the upright RGB pixels (H, W, 3) of an image; raises ImageError

IMAGE_CACHE_BYTES = 512 * 2**20  # decoded images that a process keeps: 580 photos of 640 x 480
SAMPLES_AHEAD = 8  # for each thread: enough to bridge a large photo, few enough to hold

# What a random number is for. It goes first, because trailing zeros do not change what NumPy makes of a seed.
ORDER, SAMPLE, STEP = 1, 2, 3

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Sample:
    """One box as the networks see it: two views (S, S, 3) of a crop, and the box's own pixels (S, S) in it, 0 or 1."""

    student: Pixels
    teacher: Pixels
    mask: Pixels
    box: Box


@dataclass(frozen=True)
class Batch:
    """Samples on a device: views (B, 3, S, S) normalised, box masks (B, 1, S, S) in [0, 1], boxes (B, 4) xyxy.

    All are float32 but the boxes, which are float64: their areas decide sizes, as they do when labelling.
    """

    student: Tensor
    teacher: Tensor
    masks: Tensor
    boxes: Tensor

    def to(self, device: str) -> "Batch":
        """The batch on another device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


def collate(samples: Sequence[Sample]) -> Batch:
    """The samples as a batch on the CPU."""
    return Batch(
        normalise([sample.student for sample in samples]),
        normalise([sample.teacher for sample in samples]),
        torch.from_numpy(np.stack([sample.mask for sample in samples]))[:, None].float(),
        torch.tensor([sample.box for sample in samples], dtype=torch.float64),
    )


def random_margins(rate: tuple[float, float], rng: np.random.Generator) -> Margins:
    """The margins left, top, right and bottom of a training crop.

    Each is drawn from `rate`; then the two of opposite sides share one budget, so that the object is off-centre.
    """
    left, top, right, bottom = rng.uniform(*rate, size=4)
    across, down = rng.random(2)
    return float(left * across), float(top * down), float(right * (1 - across)), float(bottom * (1 - down))


class SampleSet:
    """The samples of a training, any of them at any time, from any thread."""

    def __init__(
        self,
        data: LabelledBoxes,
        read: Reader,
        *,
        crop_size: int,
        margin_rate: tuple[float, float],
        seed: int,
        augmentation: MalAugmentationSpec = RECIPE,
    ) -> None:
        self._data = data
        self._augmentation = augmentation
        self._pictures = DecodedImages(read, IMAGE_CACHE_BYTES)
        self._crop_size, self._margin_rate, self._seed = crop_size, margin_rate, seed

    def __len__(self) -> int:
        """How many boxes there are."""
        return len(self._data)

    def order(self, epoch: int, multiple: int) -> NDArray[np.int64]:
        """The boxes of an epoch in its random order, filled up from its beginning to a multiple of `multiple`."""
        order = np.random.default_rng([ORDER, self._seed, epoch]).permutation(len(self))
        return np.resize(order, -(-len(self) // multiple) * multiple)

    def sample(self, epoch: int, index: int) -> Sample:
        """The sample of a box in an epoch. Raises ImageError where its image cannot be read any more."""
        rng = np.random.default_rng([SAMPLE, self._seed, epoch, index])
        image = self._data.images[self._data.image_of[index]]
        pixels = self._pictures.get(image)
        left, top, right, bottom = self._data.boxes[index].tolist()
        box = (left, top, right, bottom)
        window = expand(box, random_margins(self._margin_rate, rng))
        crop = crop_image(pixels, window, self._crop_size)
        mask = crop_box(box, window, image.height, image.width, self._crop_size, wrap=True)
        crop, mask = mirror(crop, mask, rng, self._augmentation)
        return Sample(student=distort(crop, rng, self._augmentation), teacher=crop, mask=mask, box=box)

    def batches(self, epoch: int, indices: NDArray[np.int64], size: int, threads: int) -> Iterator[Batch]:
        """The batches of `size` boxes each, in their order; their samples are made ahead by `threads` threads."""
        samples = in_order(lambda index: self.sample(epoch, index), indices.tolist(), threads)
        for group in zip(*[samples] * size, strict=True):
            yield collate(group)


class DecodedImages:
    """Keeps the pixels of the images that were used last, up to a number of bytes; shared by threads."""

    def __init__(self, read: Reader, most_bytes: int) -> None:
        self._read, self._most = read, most_bytes
        self._kept: OrderedDict[str, Pixels] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, image: Image) -> Pixels:
        """The pixels (H, W, 3) of an image. Raises ImageError, which names it, where it cannot be read."""
        with self._lock:
            if image.key in self._kept:
                self._kept.move_to_end(image.key)
                return self._kept[image.key]
        pixels = self._decode(image)
        with self._lock:
            self._keep(image.key, pixels)
        return pixels

    def _decode(self, image: Image) -> Pixels:
        try:
            return self._read(image)
        except ImageError as error:
            raise ImageError(f"{image.key} {error}") from error

    def _keep(self, key: str, pixels: Pixels) -> None:
        if key in self._kept:
            return  # another thread was faster
        self._kept[key] = pixels
        self._bytes += pixels.nbytes
        while self._bytes > self._most:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """What `work` makes of every item, in their order, made ahead by `threads` threads; 0 works when asked."""
    if threads == 0:
        yield from map(work, items)
        return
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) == SAMPLES_AHEAD * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
