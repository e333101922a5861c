"""Each figure in words, for those who cannot see it: the kind of picture, its axes and what to read off."""

from __future__ import annotations

ALT = {
    "pipeline": (
        "Flow chart from the data over pre-training, an optional intermediate task and fine-tuning to evaluation, "
        "with the number of images, epochs and trainings in each box."
    ),
    "miou_curves": (
        "Line charts of mean IoU in percent against the number of labelled images, one for each intermediate "
        "task, with a line for each number of pre-training images and bars for 95 % intervals."
    ),
    "miou_difference": (
        "Line charts of the change in mean IoU that each intermediate task makes, in percentage points, against "
        "the number of labelled images, with standard errors and a dot for each seed."
    ),
    "learning_curves": (
        "Line charts of the training loss against the epoch, one for each stage, with a line for each run."
    ),
    "segmentation": (
        "Grid of pictures: test images in columns; below each its true mask and the masks that several models predict."
    ),
    "failures": (
        "Grid of pictures: the test images on which the intermediate task costs most; below each its true mask, "
        "the mask predicted without the task and the mask predicted after it, with their mean IoU."
    ),
    "reconstructions": (
        "Grid of pictures: in each row a test image, the same with masked patches, and what the pre-trained model "
        "paints into them."
    ),
    "effects": (
        "Forest plots of what each intermediate task changes in mean IoU, in percentage points: a row for each "
        "cell with its 95 % interval and single seeds, and diamonds for means over cells."
    ),
    "returns": (
        "Pairs of charts, one for each intermediate task: mean IoU against the number of labels, and the gain per "
        "doubling of the labels, with 95 % intervals."
    ),
    "transfer": (
        "Charts of the number of labels that a random start would need against the number used, both logarithmic, "
        "with a diagonal where the two are equal and a mark for each cell."
    ),
    "costs": (
        "Scatter charts of mean IoU against operations and against seconds of training, on logarithmic axes, with "
        "a mark for each cell and a stepped line through the best."
    ),
    "geometry_layers": (
        "Line charts of eight properties of the patch tokens against the layer, with a line for each encoder."
    ),
    "geometry_similarity": (
        "Two line charts of the cosine similarity of patch tokens against the distance of their patches, from "
        "minus 1 to 1, with a line for each encoder."
    ),
    "geometry_heat_maps": (
        "Grid of heat maps: for each encoder, how similar every patch of a picture is to a framed one, orange "
        "where alike and purple where opposed."
    ),
    "geometry_harm": (
        "Scatter charts, one for each property of the patch tokens: what a task changes in it against what it "
        "changes in mean IoU, with the rank correlation, its interval and its corrected p value above."
    ),
}
