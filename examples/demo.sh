#!/bin/sh
# The main job on the embedded default: calibrate, export with an engine, infer on a folder of images.
# Run it in a folder where it may write; `make demo` does so in the checkout.
set -eu
here=$(dirname "$0")

echo "== sad-deploy calibrate --overwrite"
sad-deploy calibrate --overwrite
echo "== sad-deploy export --trt"
sad-deploy export --trt
echo "== images/: held-out handwritten digits as PNG files"
python "$here/digit_images.py" images
echo "== sad-deploy infer images/"
sad-deploy infer images/ --saliency overlays --report report.html --overwrite

cat <<'END'

sad-model/          the bundle: weights, graph, engine, manifest   (sad-deploy inspect)
predictions.jsonl   one row per image
overlays/           each image beside its saliency
report.html         all of it to look through
END
