/*
 * placeholder
 */
#include "sandbox/image.h"

#include "base/error.h"

Image *image_pull(Depot *depot, const char *ref, const ImageOptions *options, GError **error)
{
    (void)depot;
    (void)options;
    error_set(error, ASSAY_ERROR_UNSUPPORTED, "pull %s", ref);
    return NULL;
}
