"""Kernels that reach every branch of the schedules, by what writes them."""

KERNELS = {
    "dense": [
        # pointwise: channels that fill no tile, an addition, a gate, a slice of the input
        "conv2d 58x5x5 -> 58x5x5 k1 s1 p0 g1 bias relu",
        "conv2d 36x4x4[12:36] -> 20x4x4 k1 s1 p0 g1 bias add:40x4x4[20:40] hard_swish",
        "conv2d 12x5x5 -> 20x5x5 k1 s1 p0 g1 bias hard_swish multiply:40x1x1[20:40] relu6",
        # a stem, padding, neither padding nor a last whole window, a stride
        "conv2d 3x13x12 -> 20x7x6 k3 s2 p1 g1 bias relu6",
        "conv2d 6x6x6 -> 10x6x6 k5 s1 p2 g1",
        "conv2d 3x15x14 -> 20x5x4 k7 s2 p0 g1 bias relu",
        "conv2d 16x7x7 -> 24x4x4 k1 s2 p0 g1",
    ],
    # with few or odd numbers of channels in a group
    "grouped": [
        "conv2d 24x4x4 -> 72x4x4 k1 s1 p0 g3 bias relu",
        "conv2d 24x3x3 -> 40x3x3 k1 s1 p0 g8 bias hard_swish",
        "conv2d 8x6x6 -> 16x3x3 k3 s2 p1 g8 bias",
        "conv2d 32x4x4 -> 8x4x4 k1 s1 p0 g8",
    ],
    "depthwise": [
        "conv2d 58x7x9 -> 58x7x9 k3 s1 p1 g58 bias relu",
        "conv2d 40x12x12[20:40] -> 20x6x6 k5 s2 p2 g20 bias multiply:40x1x1[20:40] add hard_swish",
        "conv2d 33x3x3 -> 33x3x3 k7 s1 p3 g33 bias relu6",
        "conv2d 20x10x9 -> 20x4x4 k3 s2 p0 g20",
    ],
    "expanded": [
        "conv2d 12x9x9 expanded bias relu6 -> 36x9x9 k3 s1 p1 g36 bias relu6",
        "conv2d 10x9x7[2:10] expanded bias hard_swish -> 34x5x4 k5 s2 p2 g34 bias",
        "conv2d 5x3x3 expanded bias -> 7x3x3 k7 s1 p3 g7 add",
        "conv2d 12x10x9 expanded bias relu -> 20x4x4 k3 s2 p0 g20 bias",
    ],
    # some of their last windows exceed the padded image
    "pooling": [
        "max_pool 70x13x13 -> 70x7x7 k3 s2 p1 g1",
        "max_pool 20x7x8 -> 20x3x3 k3 s3 p0 g1",
        "max_pool 38x4x4 -> 38x2x2 k3 s2 p0 g1 hard_sigmoid",
        "avg_pool 20x1x1 -> 20x1x1 k3 s2 p1 g1",
        "avg_pool 33x12x11 -> 33x4x3 k3 s3 p0 g1 relu",
        "avg_pool 20x13x34 -> 20x6x17 k3 s2 p0 g1",
        "global_pool 150x3x3 -> 150x1x1",
        "global_pool 35x7x7 -> 35x1x1 relu",
        "global_pool 40x5x4[8:40] -> 32x1x1",
    ],
    "matrix times vector": [
        "linear 64x1x1 -> 40x1x1 bias",
        "linear 33x1x1 -> 11x1x1 bias hard_swish",
        "conv2d 72x1x1 -> 24x1x1 k1 s1 p0 g1 bias relu",
        "conv2d 300x1x1[44:300] -> 58x1x1 k1 s1 p0 g1 bias hard_sigmoid",
    ],
    "data movement": [
        "concat 116x5x5[0:58] 58x5x5 -> 116x5x5 shuffle2",
        "concat 14x5x5 40x5x5[13:27] 40x5x5[26:40] -> 42x5x5 shuffle2",
        "concat 21x4x4 17x4x4 -> 38x4x4 add",
        "concat 16x4x4 24x4x4 8x4x4 -> 48x4x4 relu",
        "concat 10x5x5 10x5x5 -> 20x5x5 multiply",
        "copy 36x6x6 -> 36x6x6 shuffle3",
        "copy 40x5x5[13:27] -> 14x5x5 add:40x5x5[26:40]",
        "copy 24x7x7 -> 24x7x7 multiply",
        "copy 40x1x1[10:20] -> 10x1x1 hard_swish",
    ],
}

FOR_CPUS = [
    # with Winograd among the schedules: whole tiles, and tiles that exceed the output
    "conv2d 5x8x12 -> 20x8x12 k3 s1 p1 g1 bias relu",
    "conv2d 37x9x7 -> 70x9x7 k3 s1 p1 g1 bias",
    "conv2d 20x6x11 -> 16x4x9 k3 s1 p0 g1 relu",
    # several tiles of channels
    "conv2d 20x9x9 -> 150x9x9 k1 s1 p0 g1 bias relu",
    "conv2d 384x3x3 -> 96x3x3 k1 s1 p0 g8 bias relu",
    "conv2d 7x12x11 expanded bias -> 150x6x6 k5 s2 p2 g150 bias hard_swish",
    "conv2d 5x11x8 expanded bias relu -> 20x4x3 k3 s3 p1 g20",
]
"""Further kernels, which an emulated GPU would compute for minutes."""
