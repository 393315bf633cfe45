/*
 * Finding a card and opening the CUDA backend.
 *
 * Invariants
 *  1. A program without a card, a driver or the library runs as if this file were not there.
 *  2. A refusal names what was found and what is asked for, in numbers.
 *
 * Not here: the kernels (cuda/), whether a program wants them (env/).
 */
#include "kernels/cuda_load.h"

#include "kernels/library.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The driver's interface, as far as it is used; values as in cuda.h, which is not needed here. */
enum {
    ATTRIBUTE_MAJOR = 75,
    ATTRIBUTE_MINOR = 76,
    ATTRIBUTE_PAGEABLE = 88, /* the card reads memory that the process allocated by any means */
};

typedef struct {
    int (*init)(unsigned flags);
    int (*version)(int *version);
    int (*count)(int *count);
    int (*get)(int *device, int ordinal);
    int (*name)(char *name, int size, int device);
    int (*attribute)(int *value, int attribute, int device);
    int (*memory)(size_t *bytes, int device);
} Driver;

static int refuse(char *why, size_t why_size, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int refuse(char *why, size_t why_size, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(why, why_size, format, args);
    va_end(args);
    return 0;
}

static int driver_open(Driver *d, const char *file, char *why, size_t why_size)
{
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    const struct {
        const char *name;
        void *at; /* a function pointer of the struct */
    } symbols[] = {
        {"cuInit", &d->init},
        {"cuDriverGetVersion", &d->version},
        {"cuDeviceGetCount", &d->count},
        {"cuDeviceGet", &d->get},
        {"cuDeviceGetName", &d->name},
        {"cuDeviceGetAttribute", &d->attribute},
        {"cuDeviceTotalMem_v2", &d->memory},
    };

    if (!library)
        return refuse(why, why_size, "no CUDA driver: %s", dlerror());
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *found = dlsym(library, symbols[i].name);

        if (!found)
            return refuse(why, why_size, "%s has no %s", file, symbols[i].name);
        memcpy(symbols[i].at, &found, sizeof found);
    }
    return 1;
}

static int card_read(CudaCard *card, const Driver *d)
{
    int device;
    size_t bytes;

    if (d->get(&device, 0) || d->name(card->name, (int)sizeof card->name, device) ||
        d->attribute(&card->major, ATTRIBUTE_MAJOR, device) ||
        d->attribute(&card->minor, ATTRIBUTE_MINOR, device) ||
        d->attribute(&card->reads_host, ATTRIBUTE_PAGEABLE, device) || d->memory(&bytes, device))
        return 0;
    card->memory_bytes = bytes;
    return 1;
}

int cuda_card(CudaCard *card, const char *driver, char *why, size_t why_size)
{
    Driver d;
    int count = 0, failed;

    memset(card, 0, sizeof *card);
    if (!driver_open(&d, driver ? driver : "libcuda.so.1", why, why_size))
        return 0;
    failed = d.init(0);
    if (failed)
        return refuse(why, why_size, "the CUDA driver does not start: error %d", failed);
    if (d.version(&card->driver) || d.count(&count))
        return refuse(why, why_size, "the CUDA driver does not say what it drives");
    if (count == 0)
        return refuse(why, why_size, "a CUDA driver, but no card");
    if (!card_read(card, &d))
        return refuse(why, why_size, "the first card does not say what it is");
    if (card->major < CUDA_MAJOR_MIN)
        return refuse(why, why_size, "%s has compute capability %d.%d; kernels are for %d.0 on",
                      card->name, card->major, card->minor, CUDA_MAJOR_MIN);
    if (card->memory_bytes < CUDA_MEMORY_MIN)
        return refuse(why, why_size, "%s has %llu MiB of memory; at least %llu are wanted",
                      card->name, (unsigned long long)card->memory_bytes >> 20,
                      CUDA_MEMORY_MIN >> 20);
    return 1;
}

const Ops *cuda_load(CudaCard *card, const char *driver, const char *library, char *why,
                     size_t why_size)
{
    const Ops *(*ops)(void);
    int (*needs)(void);
    void *opened, *entry, *version;

    if (!cuda_card(card, driver, why, why_size))
        return NULL;
    opened = library_open(library, "libassay-cuda.so", "CUDA backend", why, why_size);
    if (!opened)
        return NULL;
    entry = dlsym(opened, "cuda_ops");
    version = dlsym(opened, "cuda_needs");
    if (!entry || !version) {
        refuse(why, why_size, "libassay-cuda.so is of another version: it lacks %s",
               entry ? "cuda_needs" : "cuda_ops");
        return NULL;
    }
    memcpy(&ops, &entry, sizeof ops);
    memcpy(&needs, &version, sizeof needs);
    if (card->driver < needs()) {
        refuse(why, why_size, "the driver speaks CUDA %d.%d; the backend needs %d.%d",
               card->driver / 1000, card->driver % 1000 / 10, needs() / 1000, needs() % 1000 / 10);
        return NULL;
    }
    return ops();
}
