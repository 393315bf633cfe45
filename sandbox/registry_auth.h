/*
 * Credentials of registries, and what a registry says it wants.
 */
#pragma once

#include "sandbox/image.h"

typedef struct RegistryLogin {
    char *basic; /* "Authorization: Basic ..."; NULL: none */
    char *why;   /* a credential helper gave none; NULL: it did, or none was asked */
} RegistryLogin;
void registry_login_clear(RegistryLogin *login);

/* What docker's config.json has for `host`, or the credential helper that it names. `path` NULL:
 * $DOCKER_CONFIG or ~/.docker, absent is none. */
gboolean registry_login_read(const char *path, const char *host, RegistryLogin *ret_login,
                             GError **error);

/* Whether HOST or HOST:PORT is this machine, by an address or "localhost". */
gboolean registry_host_is_loopback(const char *host);

/* What a registry asks for, the better the greater. */
typedef enum RegistryScheme {
    REGISTRY_SCHEME_NONE = 0, /* nothing that we can answer */
    REGISTRY_SCHEME_BASIC,
    REGISTRY_SCHEME_BEARER,
} RegistryScheme;

typedef struct RegistryChallenge {
    RegistryScheme scheme;
    char *realm, *service, *scope; /* of a bearer challenge; NULL: not said, but for the realm */
} RegistryChallenge;
void registry_challenge_clear(RegistryChallenge *challenge);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(RegistryChallenge, registry_challenge_clear)

/* Reads one WWW-Authenticate header, which may hold several challenges, and replaces `best` by a
 * better one. What makes no sense is no challenge. */
void registry_challenge_parse(const char *header, RegistryChallenge *best);
