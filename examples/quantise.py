"""Make an int8 model of a float one, see what each layer loses, and run both.

$ pip install 'npu-sdk[models]' scikit-learn
$ python examples/quantise.py
"""

from classify_image import labels, pictures, seen, trained, unseen

import sdk

with sdk.Device("emulator") as dev:
    floats = trained(dev)
    samples = [pictures[seen][start : start + 32] for start in range(0, 320, 32)]  # typical inputs: some hundred do
    quantised = sdk.quantize(floats, samples, progress=lambda stage, count: print(stage, count, end="  "))
    print()
    for loss in sdk.quantization_losses(floats, quantised, samples[:2]):
        print(loss)  # the worst first; quantize(..., keep_float=[loss.node]) leaves a node as it is
    right = []
    for name, net in (("float32", floats), ("int8", quantised)):
        scores = dev.load(net)(pictures[unseen])["scores"]
        right.append((scores.argmax(axis=1) == labels[unseen]).mean())
        print(f"{name}: {right[-1]:.2%} recognised, {net.ByteSize():,} bytes")
    assert right[1] > right[0] - 0.01
