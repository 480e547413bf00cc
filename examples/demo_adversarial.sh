#!/bin/sh
# SAD where it makes sense, and an honest look at it: a network of digits is trained adversarially (Fast), calibrated,
# exported, used, and attacked. Run it in a folder where it may write; `make demo-at` does so in the checkout.
set -eu
here=$(dirname "$0")

echo "== python examples/train.py --method fast"
rm -f at-weights.safetensors.training
python "$here/train.py" --method fast --out at-weights.safetensors
echo "== sad-deploy calibrate --weights at-weights.safetensors --eta 1.2"
sad-deploy calibrate --weights at-weights.safetensors --eta 1.2 --out at-model --overwrite
echo "== sad-deploy export at-model"
sad-deploy export at-model
echo "== sad-deploy infer images/"
python "$here/digit_images.py" images
sad-deploy infer images/ --bundle at-model --out at-predictions.jsonl --overwrite
echo "== sad-deploy evaluate at-model --epsilon 0.1"
sad-deploy evaluate at-model --epsilon 0.1 --images 50 --budget 60s --report robustness.html

cat <<'END'

at-weights.safetensors   the network as it was trained
at-model/                the bundle; sad-deploy inspect at-model quotes the evaluation
robustness.html          the attacks, what they left, and what they made
END
