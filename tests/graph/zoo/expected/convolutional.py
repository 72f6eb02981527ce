"""The groups of convolutional networks."""

from __future__ import annotations

from .notation import Group, columns, cut, filters, normed, read, rows


def dense_net() -> tuple[Group, ...]:
    """Each layer's output is read by all later norms and convolutions up to the transition."""
    first = [f"block1.layers.{i}" for i in range(3)]
    second = [f"block2.layers.{i}" for i in range(2)]

    def readers(layers: list[str]) -> str:
        return " ".join(f"{rows(layer + '.bn1')} {columns(layer + '.conv1')}" for layer in layers)

    before, after = f"{rows('transition.0')} {columns('transition.2')}", f"{rows('norm')} {columns('head')}"
    return (
        cut(16, filters("stem"), readers(first), before),
        *(cut(8, filters(f"{layer}.conv2"), readers(first[i + 1 :]), before) for i, layer in enumerate(first)),
        cut(20, filters("transition.2"), readers(second), after),
        *(cut(8, filters(f"{layer}.conv2"), readers(second[i + 1 :]), after) for i, layer in enumerate(second)),
        *(cut(32, filters(f"{x}.conv1"), rows(f"{x}.bn2"), columns(f"{x}.conv2")) for x in first + second),
    )


def res2_block(block: str, share: int) -> tuple[Group, ...]:
    """Four shares of the inner width: kept, convolved, and twice convolved together with the result before."""
    reduce, expand = normed(f"{block}.reduce"), read(f"{block}.expand")
    branches = [f"{block}.branches.{i}" for i in range(3)]
    return (
        cut(share, reduce, expand),
        cut(share, reduce, read(branches[0])),
        cut(share, reduce, normed(branches[0]), read(branches[1]), expand),
        cut(share, reduce, normed(branches[1]), read(branches[2]), expand),
        cut(share, normed(branches[2]), expand),
    )


def regnet_block(block: str) -> tuple[Group, ...]:
    """Three groups of eight, and a squeeze-and-excite over both factors."""
    reduce, spatial, excited = normed(f"{block}.reduce"), normed(f"{block}.spatial"), rows(f"{block}.excite.expand")
    consumed = f"{columns(f'{block}.excite.reduce')} {read(f'{block}.expand')}"
    return (
        cut(3, reduce, spatial, excited, consumed),
        cut(8, reduce, read(f"{block}.spatial")),
        cut(8, spatial, excited, consumed),
        cut(6, rows(f"{block}.excite.reduce"), columns(f"{block}.excite.expand")),
    )


def grouped_bottleneck(block: str) -> tuple[Group, ...]:
    """Four groups of six."""
    reduce, spatial = normed(f"{block}.reduce"), normed(f"{block}.spatial")
    return (
        cut(4, reduce, spatial, read(f"{block}.expand")),
        cut(6, reduce, read(f"{block}.spatial")),
        cut(6, spatial, read(f"{block}.expand")),
    )


CONVOLUTIONAL = {
    "lenet": (
        cut(12, rows("conv1"), columns("conv2")),
        cut(24, rows("conv2"), columns("fc1")),
        cut(40, rows("fc1"), columns("fc2")),
        cut(20, rows("fc2"), columns("fc3")),
    ),
    "vgg": (
        cut(8, rows("features.0"), columns("features.2")),
        cut(16, rows("features.2"), columns("features.5")),
        cut(24, rows("features.5"), columns("features.7")),
        cut(32, rows("features.7"), columns("classifier.0")),
        cut(48, rows("classifier.0"), columns("classifier.3")),
    ),
    "resnet_basic": (
        cut(8, normed("features.0 features.1.second"), read("features.1.first features.2.first features.2.shortcut")),
        cut(8, normed("features.1.first"), read("features.1.second")),
        cut(16, normed("features.2.first"), read("features.2.second")),
        cut(16, normed("features.3.first"), read("features.3.second")),
        cut(16, normed("features.2.second features.2.shortcut features.3.second"), read("features.3.first"), columns("head")),
    ),
    # the eight padded channels lie four before and four after those of the first stage
    "resnet_option_a": (
        cut(
            8,
            normed("features.0"),
            *(
                f"{filters(f'features.{i}.conv2')} {rows(f'features.{i}.bn2')} {columns(f'features.{i}.conv1')}"
                for i in (1, 2, 3)
            ),
            columns("head"),
        ),
        cut(
            8,
            filters("features.2.conv2 features.3.conv2"),
            rows("features.2.bn2 features.3.bn2"),
            columns("features.3.conv1 head"),
        ),
        *(
            cut(units, filters(f"features.{i}.conv1"), rows(f"features.{i}.bn1"), columns(f"features.{i}.conv2"))
            for i, units in ((1, 8), (2, 16), (3, 16))
        ),
    ),
    "densenet": dense_net(),
    "squeezenet": (
        cut(16, rows("stem"), columns("fire1.squeeze")),
        cut(8, rows("fire1.squeeze"), columns("fire1.expand1 fire1.expand3")),
        cut(12, rows("fire1.expand1 fire2.expand1"), columns("fire2.squeeze fire3.squeeze")),
        cut(12, rows("fire1.expand3 fire2.expand3"), columns("fire2.squeeze fire3.squeeze")),
        cut(8, rows("fire2.squeeze"), columns("fire2.expand1 fire2.expand3")),
        cut(10, rows("fire3.squeeze"), columns("fire3.expand1 fire3.expand3")),
        cut(16, rows("fire3.expand1"), columns("classifier")),
        cut(16, rows("fire3.expand3"), columns("classifier")),
    ),
    "mobilenet_v2": (
        cut(8, normed("features.0"), read("features.1.expand")),
        cut(24, normed("features.1.expand features.1.depthwise"), read("features.1.project")),
        cut(12, normed("features.1.project features.2.project"), read("features.2.expand features.3.expand")),
        cut(36, normed("features.2.expand features.2.depthwise"), read("features.2.project")),
        cut(36, normed("features.3.expand features.3.depthwise"), read("features.3.project")),
        cut(16, normed("features.3.project"), read("features.4")),
        cut(40, normed("features.4"), columns("head")),
    ),
    "resnext": (
        cut(16, normed("features.0"), read("features.1.reduce features.1.shortcut")),
        cut(32, normed("features.1.expand features.1.shortcut features.2.expand"), read("features.2.reduce"), columns("head")),
        *grouped_bottleneck("features.1"),
        *grouped_bottleneck("features.2"),
    ),
    "regnet": (
        cut(16, normed("features.0"), read("features.1.reduce features.1.shortcut")),
        cut(24, normed("features.1.expand features.1.shortcut features.2.expand"), read("features.2.reduce"), columns("head")),
        *regnet_block("features.1"),
        *regnet_block("features.2"),
    ),
    "res2net": (
        cut(
            16,
            normed("features.0 features.1.expand features.2.expand"),
            read("features.1.reduce features.2.reduce"),
            columns("head"),
        ),
        *res2_block("features.1", 6),
        *res2_block("features.2", 8),
    ),
    "convnext": (
        cut(
            12,
            rows("features.0 features.1.depthwise features.1.norm features.1.project features.2.0"),
            "features.1.layer_scale:0",
            columns("features.1.expand features.2.1"),
        ),
        cut(24, rows("features.1.expand"), columns("features.1.project")),
        cut(
            24,
            rows("features.2.1 features.3.depthwise features.3.norm features.3.project features.4"),
            "features.3.layer_scale:0",
            columns("features.3.expand head"),
        ),
        cut(48, rows("features.3.expand"), columns("features.3.project")),
    ),
    "unet": (
        cut(8, normed("down1.0"), read("down1.1")),
        cut(8, normed("down1.1"), read("down2.0 merge1.0")),
        cut(16, normed("down2.0"), read("down2.1")),
        cut(16, normed("down2.1"), read("bottom.0 merge2.0")),
        cut(24, normed("bottom.0"), read("bottom.1")),
        cut(24, normed("bottom.1"), filters("up2")),
        cut(16, "up2.weight:1 up2.bias:0", read("merge2.0")),
        cut(16, normed("merge2.0"), read("merge2.1")),
        cut(16, normed("merge2.1"), filters("up1")),
        cut(8, "up1.weight:1 up1.bias:0", read("merge1.0")),
        cut(12, normed("merge1.0"), read("merge1.1")),
        cut(12, normed("merge1.1"), columns("head")),
    ),
    "espcn": (cut(24, rows("conv1"), columns("conv2")), cut(16, rows("conv2"), columns("conv3"))),
    "edsr": (
        cut(16, rows("stem project.0 project.1"), columns("expand.0 expand.1 up")),
        cut(20, rows("expand.0"), columns("project.0")),
        cut(20, rows("expand.1"), columns("project.1")),
        cut(16, rows("up"), columns("tail")),
    ),
    "gan_generator": (
        cut(32, "project.weight:1", rows("norm1"), filters("up1")),
        cut(24, "up1.weight:1", rows("norm2"), filters("up2")),
        cut(12, "up2.weight:1", rows("norm3"), filters("image")),
    ),
    "linear_gan_generator": (cut(24, rows("fc"), columns("conv1")), cut(12, rows("conv1"), columns("conv2"))),
    "siamese": (
        cut(12, rows("tower.0"), columns("tower.3")),
        cut(20, rows("tower.3"), columns("vector")),
        cut(16, rows("vector"), columns("head")),
    ),
}
