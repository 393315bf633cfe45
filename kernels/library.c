/*
 * Opening libraries of ours.
 *
 * Not here: what is in them (cuda_load.c, comm_cards.c).
 */
#include "kernels/library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifndef ASSAY_LIBDIR
#error "the build says where libraries are installed"
#endif

#define PATH_BYTES 4096

void *library_open(const char *path, const char *file, const char *noun, char *why, size_t why_size)
{
    char exe[PATH_BYTES], beside[PATH_BYTES + 256];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    char *dir_end;
    void *library;

    exe[n > 0 ? n : 0] = '\0';
    dir_end = strrchr(exe, '/');
    if (dir_end)
        *dir_end = '\0';
    snprintf(beside, sizeof beside, "%s/../kernels/%s", exe, file);
    if (!path && access(beside, R_OK) != 0)
        snprintf(beside, sizeof beside, "%s/%s", ASSAY_LIBDIR, file);
    library = dlopen(path ? path : beside, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        snprintf(why, why_size, "no %s: %s", noun, dlerror());
    return library;
}
