/*
 * Environments that are images: their layers as the root, their /testbed under the checkout.
 */
#pragma once

#include "env/env_build.h"

/* Fills root, workspace lowers, envp and image_id of empty `layers`. NOT_FOUND says how to get it.
 * The image's own history never shows: .git of the workspace is the checkout's alone. */
gboolean env_image_open(const char *state_dir, const char *image, EnvLayers *layers,
                        GError **error);

/* The digest that a name stands for today; "" when the image is not there. */
char *env_image_id(const char *state_dir, const char *image);

/* The digest of a recipe over an image: the recipe's own without one. */
char *env_image_key(const char *recipe, const char *image_id);
