/* A Python interpreter in a program of somebody else, which may have a malloc of its own linked in. */
#include <Python.h>

int main(int argc, char **argv)
{
    return Py_BytesMain(argc, argv);
}
