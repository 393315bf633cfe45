/*
 * Environments: what must be installed round a checkout so that its tests can run.
 *
 *     g_autoptr(Environment) env = environment_for(task, "swebench.conf", error);
 *     env->layer_digest    of the layer all tasks of one recipe share
 *     env->digest          of the layer of this task's commit over it; part of the grade key
 *
 * This is the recipe; env/env_build.c runs it in a box and keeps the layers.
 */
#pragma once

#include "tasks/task.h"

/* Bump when the same recipe gives another layer. */
#define ENVIRONMENT_VERSION "assay.environment.v1"

typedef struct Environment {
    char *name;        /* the group's name; "host" when no group matches */
    char *base;        /* "host" or the absolute path of a root directory */
    char *image;       /* an image of the store instead of `base`, or NULL */
    char *python;      /* "3.9", or NULL: no virtual environment is made */
    GStrv packages;    /* pip requirements, installed together */
    GStrv setup;       /* shell commands, once per recipe; network allowed */
    GStrv install;     /* shell commands in /testbed at the base commit; network allowed */
    GStrv envp;        /* NAME=value for every command of builds and grades */
    GStrv egress;      /* "host:port" that commands may reach; none: the host's network */
    GStrv protect;     /* globs of the repository's own test runner; strict restores them */
    gboolean prologue; /* strict grading runs the script's own install lines as well */
    char *layer_digest, *digest;
} Environment;

/* The environment of a task: the first group of the file that matches, else the host's root alone.
 * `conf_path` may be NULL. Errors name the group and the key. */
Environment *environment_for(const Task *task, const char *conf_path, GError **error);
void environment_free(Environment *environment);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Environment, environment_free)

/* Checks the whole file: unknown keys (with a suggestion), groups without repo. */
gboolean environment_conf_check(const char *conf_path, GError **error);
