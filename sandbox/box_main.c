/*
 * The box tool as a program of its own, for the build tree: what `assay box` links.
 */
#include "sandbox/box_tool.h"

int main(int argc, char **argv)
{
    return box_tool_main(argc, argv);
}
