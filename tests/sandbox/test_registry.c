/*
 * What registries say before anything is fetched: who is loopback, what a challenge asks for.
 */
#include "sandbox/registry_auth.h"

static void only_this_machine_is_loopback(void)
{
    static const char *const own[] = {"localhost",   "localhost:5000", "127.0.0.1",
                                      "127.9.9.9:1", "[::1]",          "[::1]:5000"};
    static const char *const other[] = {"127.example.org", "localhost.example.org",
                                        "128.0.0.1",       "127.0.0.1.example.org",
                                        "[::2]",           "127.1",
                                        "0.0.0.0",         "[::1].example.org"};
    for (guint i = 0; i < G_N_ELEMENTS(own); i++)
        g_assert_true(registry_host_is_loopback(own[i]));
    for (guint i = 0; i < G_N_ELEMENTS(other); i++) {
        g_test_message("%s", other[i]);
        g_assert_false(registry_host_is_loopback(other[i]));
    }
}

/* clang-format off */
static const struct {
    const char *header;
    RegistryScheme scheme;
    const char *realm, *service, *scope;
} challenges[] = {
    {"Bearer realm=\"https://a/t\",service=\"s\",scope=\"repository:x:pull,push\"",
     REGISTRY_SCHEME_BEARER, "https://a/t", "s", "repository:x:pull,push"},
    {"bearer realm=https://a", REGISTRY_SCHEME_NONE, NULL, NULL, NULL},
    {"BEARER  realm = \"a\" , service = b", REGISTRY_SCHEME_BEARER, "a", "b", NULL},
    {"Bearer realm=\"a\\\"b\\\\c\"", REGISTRY_SCHEME_BEARER, "a\"b\\c", NULL, NULL},
    {"Bearer realm=\"a\",realm=\"b\"", REGISTRY_SCHEME_BEARER, "a", NULL, NULL},
    {"Bearer service=\"s\"", REGISTRY_SCHEME_NONE, NULL, NULL, NULL},
    {"Bearer realm=\"a", REGISTRY_SCHEME_NONE, NULL, NULL, NULL},
    {"Bearer realm=\"a\\", REGISTRY_SCHEME_NONE, NULL, NULL, NULL},
    {"Basic realm=\"x\"", REGISTRY_SCHEME_BASIC, NULL, NULL, NULL},
    {"Basic", REGISTRY_SCHEME_BASIC, NULL, NULL, NULL},
    {"Negotiate, Basic realm=\"x\", Bearer realm=\"y\"", REGISTRY_SCHEME_BEARER, "y", NULL, NULL},
    {"Bearer realm=\"y\", Basic realm=\"x\"", REGISTRY_SCHEME_BEARER, "y", NULL, NULL},
    {"Negotiate", REGISTRY_SCHEME_NONE, NULL, NULL, NULL},
    {"", REGISTRY_SCHEME_NONE, NULL, NULL, NULL},
    {",,,\t ,", REGISTRY_SCHEME_NONE, NULL, NULL, NULL},
    {"=", REGISTRY_SCHEME_NONE, NULL, NULL, NULL},
};
/* clang-format on */

static void a_challenge_is_read_from_whatever_stands_around_it(void)
{
    for (guint i = 0; i < G_N_ELEMENTS(challenges); i++) {
        g_auto(RegistryChallenge) challenge = {0};
        registry_challenge_parse(challenges[i].header, &challenge);
        g_test_message("%s", challenges[i].header);
        g_assert_cmpint(challenge.scheme, ==, challenges[i].scheme);
        if (challenge.scheme != REGISTRY_SCHEME_BEARER)
            continue;
        g_assert_cmpstr(challenge.realm, ==, challenges[i].realm);
        g_assert_cmpstr(challenge.service, ==, challenges[i].service);
        g_assert_cmpstr(challenge.scope, ==, challenges[i].scope);
    }
}

static void the_better_of_two_challenges_stays(void)
{
    g_auto(RegistryChallenge) challenge = {0};
    registry_challenge_parse("Basic realm=\"x\"", &challenge);
    registry_challenge_parse("Bearer realm=\"y\"", &challenge);
    registry_challenge_parse("Basic realm=\"z\"", &challenge);
    g_assert_cmpint(challenge.scheme, ==, REGISTRY_SCHEME_BEARER);
    g_assert_cmpstr(challenge.realm, ==, "y");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name) g_test_add_func("/registry/" #name, name)
    ADD(only_this_machine_is_loopback);
    ADD(a_challenge_is_read_from_whatever_stands_around_it);
    ADD(the_better_of_two_challenges_stays);
    return g_test_run();
}
