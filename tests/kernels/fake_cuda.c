/*
 * A driver and a backend that say what the environment tells them to, for test_cuda_load.
 */
#include "kernels/cuda/entry.h"

#include <stdio.h>
#include <stdlib.h>

int cuInit(unsigned flags);
int cuDriverGetVersion(int *version);
int cuDeviceGetCount(int *count);
int cuDeviceGet(int *device, int ordinal);
int cuDeviceGetName(char *name, int size, int device);
int cuDeviceGetAttribute(int *value, int attribute, int device);
int cuDeviceTotalMem_v2(size_t *bytes, int device);

static int told(const char *what)
{
    const char *text = getenv(what);

    return text ? (int)strtod(text, NULL) : 0;
}

int cuInit(unsigned flags)
{
    return flags ? 1 : told("FAKE_INIT");
}

int cuDriverGetVersion(int *version)
{
    *version = told("FAKE_DRIVER");
    return 0;
}

int cuDeviceGetCount(int *count)
{
    *count = told("FAKE_CARDS");
    return 0;
}

int cuDeviceGet(int *device, int ordinal)
{
    *device = ordinal + 7;
    return 0;
}

int cuDeviceGetName(char *name, int size, int device)
{
    snprintf(name, (size_t)size, "card %d", device);
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    *value = attribute == 75 ? told("FAKE_MAJOR") : attribute == 76 ? 6 : 1;
    return device != 7;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    *bytes = (size_t)told("FAKE_MIB") << 20;
    return device != 7;
}

int cuda_needs(void)
{
    return 13000;
}

const Ops *cuda_ops(void)
{
    static const Ops ops = {.name = "fake"};

    return &ops;
}
