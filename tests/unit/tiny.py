"""The arguments of a U-Net of two levels without attention, for images of any even size."""

UNET = {
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "add_attention": False,
}
