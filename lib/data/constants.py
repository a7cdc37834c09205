"""Numbers that the views and their compiled form share."""

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # luma of red, green and blue, as in torchvision
BLUR_REACH = 4  # standard deviations at which the blur's Gaussian is cut
