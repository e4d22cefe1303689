"""VGG16 and VGG19 (Simonyan and Zisserman, ICLR 2015, table 1, D and E), with the layer names of keras.applications."""

CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}  # of 3x3, in each block
FILTERS = (64, 128, 256, 512, 512)


def create_vgg(name, x, layers, alpha, variant):
    """A VGG without its dense layers.

    Levels 1..16 are the last convolution of each block, after its relu; 32 is the last pool; "pool3" and "pool4" are
    the skips of FCN. There are no norms. Maps of odd size lose their last row or column in a pool, as in
    keras.applications; a pool that became dilation keeps all rows. `alpha` multiplies the filters of all layers.
    """
    options = {"use_bias": True, "kernel_initializer": "he_normal"}  # Keras' default fades through so many relus
    fused = layers.activation_kind == "relu"  # inside the convolution, as in keras.applications
    if fused:
        options["activation"] = "relu"
    levels = {}
    native = 1
    for block, (convolutions, filters) in enumerate(zip(CONVOLUTIONS[name], FILTERS, strict=True), start=1):
        for index in range(1, convolutions + 1):
            layer = f"block{block}_conv{index}"
            x = layers.conv(x, int(filters * alpha), 3, native, name=layer, **options)
            if not fused:
                layer = f"block{block}_act{index}"
                x = layers.activate(x, layer)
        levels[native] = layer
        x = layers.max_pool(x, 2, native, padding="valid", name=f"block{block}_pool")
        native *= 2
    levels |= {32: "block5_pool", "pool3": ("block3_pool", 8), "pool4": ("block4_pool", 16)}
    return x, levels
