/*
 * Prints every mutant of every family as a line of JSON: for repair_bake.py.
 *
 *     {"family", "digest", "mutant": -1 for the right text, else its number, "row"}
 */
#include "tasks/repair.h"

#include <stdio.h>

static guint first_name(gpointer data, guint below)
{
    (void)data;
    (void)below;
    return 0;
}

static void print_row(const RepairFamily *family, int number, const RepairNames *names)
{
    g_autoptr(GError) error = NULL;
    const RepairMutant *mutant = number >= 0 ? family->mutants->pdata[number] : NULL;
    g_autoptr(json_t) row = repair_row(family, mutant, 0, names, &error);
    if (row == NULL)
        g_error("%s: %s", family->name, error->message);
    g_autoptr(json_t) line = json_pack("{s:s, s:s, s:i, s:O}", "family", family->name, "digest",
                                       family->digest, "mutant", number, "row", row);
    g_autofree char *text = json_print(line);
    puts(text);
}

int main(void)
{
    const GPtrArray *families = repair_families();
    for (guint i = 0; i < families->len; i++) {
        const RepairFamily *family = families->pdata[i];
        const RepairNames names = repair_names_draw(family, first_name, NULL);
        for (int k = -1; k < (int)family->mutants->len; k++)
            print_row(family, k, &names);
    }
    return 0;
}
