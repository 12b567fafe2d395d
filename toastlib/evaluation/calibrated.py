"""A smaller encoder and the head that belongs to it, for any plan and map, from one set of calibration images."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from toastlib.approximation.fuse import FUSED, fuse_spans
from toastlib.approximation.replace import approximate
from toastlib.data.images import Images
from toastlib.evaluation.heads import Head, aligned
from toastlib.models.encoder import Encoder
from toastlib.plan import Plan
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import KFoldMoments
from toastlib.translators.base import make_translator, split_align


@dataclass(frozen=True)
class Calibrated:
    """The original encoder and calibration images; their moments and the original's features are computed once."""

    encoder: Encoder
    images: Images

    @cached_property
    def moments(self) -> KFoldMoments:
        """Moments of all pairs of blocks, without a decoder's context: it would multiply them."""
        return collect_moments(self.encoder, self.images, context=False)

    @cached_property
    def features(self) -> Tensor:
        """The original's features of the calibration images."""
        return self.encoder.encode(self.images)

    def make(self, plan: Plan, translator: str, head: Head) -> tuple[Encoder, Head]:
        """The smaller encoder, and the original's head with the alignment folded in, if the translator has one."""
        kind, align = split_align(translator)
        if kind == FUSED:
            smaller = fuse_spans(self.encoder, plan, self.images)
        else:
            needs_pass = self.encoder.is_causal and make_translator(kind).needs_context
            smaller = approximate(self.encoder, plan, self.images if needs_pass else self.moments, translator=kind)
        if not align:
            return smaller, head
        return smaller, aligned(head, self.encoder, smaller.encode(self.images), self.features)
