/*
 * Credentials of registries, and what a registry says it wants. Pure but for reading the file.
 */
#pragma once

#include "sandbox/image.h"

typedef struct RegistryLogin {
    char *basic;  /* "Authorization: Basic ..."; NULL: none */
    char *helper; /* the credential helper that has them instead; NULL: none */
} RegistryLogin;
void registry_login_clear(RegistryLogin *login);

/* What docker's config.json has for `host`. `path` NULL: $DOCKER_CONFIG or ~/.docker, absent is
 * none. */
gboolean registry_login_read(const char *path, const char *host, RegistryLogin *ret_login,
                             GError **error);

typedef struct RegistryChallenge {
    char *realm, *service, *scope; /* "" when not said */
} RegistryChallenge;
void registry_challenge_clear(RegistryChallenge *challenge);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(RegistryChallenge, registry_challenge_clear)

/* Bearer realm="...",service="...",scope="...". FALSE: something else. */
gboolean registry_challenge_parse(const char *text, RegistryChallenge *ret_challenge);
