/* Prints the offsets of the layout table as the compiler sees them in an interpreter's own headers.
   `cargo xtask gen-offsets` makes the table of it, and the tests compare. */
#define Py_BUILD_CORE 1
#include <Python.h>
#include <stddef.h>
#if PY_VERSION_HEX < 0x03090000
#include <code.h>
#include <internal/pycore_pystate.h>
#else
#include <internal/pycore_interp.h>
#include <internal/pycore_runtime.h>
#endif
#if PY_VERSION_HEX < 0x030b0000
#include <frameobject.h>
#else
#include <internal/pycore_frame.h>
#endif

#define SHOW(name, type, field) printf("%s %zu\n", name, offsetof(type, field))
#define PUBLISHED(name, member) SHOW("published." name, struct _Py_DebugOffsets, member)
#define SHOW_BITS(name, field)                 \
    do {                                       \
        PyASCIIObject object;                  \
        unsigned bits;                         \
        memset(&object, 0, sizeof object);     \
        object.state.field = ~0u;              \
        memcpy(&bits, &object.state, 4);       \
        printf("%s %u\n", name, bits);         \
    } while (0)

int main(void) {
#if PY_VERSION_HEX >= 0x030d0000
    SHOW("thread_state.frame", PyThreadState, current_frame);
#elif PY_VERSION_HEX >= 0x030b0000
    SHOW("thread_state.cframe", PyThreadState, cframe);
    SHOW("cframe.current_frame", _PyCFrame, current_frame);
#else
    SHOW("thread_state.frame", PyThreadState, frame);
#endif
    SHOW("thread_state.next", PyThreadState, next);
    SHOW("thread_state.interpreter", PyThreadState, interp);
    SHOW("thread_state.thread_id", PyThreadState, thread_id);

#if PY_VERSION_HEX >= 0x030b0000
    SHOW("thread_state.native_thread_id", PyThreadState, native_thread_id);
    SHOW("frame.previous", _PyInterpreterFrame, previous);
    SHOW("frame.globals", _PyInterpreterFrame, f_globals);
    SHOW("frame.owner", _PyInterpreterFrame, owner);
    SHOW("code.qualified_name", PyCodeObject, co_qualname);
    SHOW("code.first_traceable", PyCodeObject, _co_firsttraceable);
    SHOW("code.start", PyCodeObject, co_code_adaptive);
    SHOW("code.units", PyVarObject, ob_size);
#else
    SHOW("frame.code", PyFrameObject, f_code);
    SHOW("frame.previous", PyFrameObject, f_back);
    SHOW("frame.globals", PyFrameObject, f_globals);
    SHOW("frame.instruction", PyFrameObject, f_lasti);
    SHOW("code.bytes", PyCodeObject, co_code);
#endif
#if PY_VERSION_HEX >= 0x030d0000
    SHOW("frame.code", _PyInterpreterFrame, f_executable);
    SHOW("frame.instruction", _PyInterpreterFrame, instr_ptr);
#elif PY_VERSION_HEX >= 0x030b0000
    SHOW("frame.code", _PyInterpreterFrame, f_code);
    SHOW("frame.instruction", _PyInterpreterFrame, prev_instr);
#endif
#if PY_VERSION_HEX >= 0x030e0000
    printf("frame.skipped_owner %d\n", FRAME_OWNED_BY_INTERPRETER);
#elif PY_VERSION_HEX >= 0x030c0000
    printf("frame.skipped_owner %d\n", FRAME_OWNED_BY_CSTACK);
#endif

    SHOW("code.name", PyCodeObject, co_name);
    SHOW("code.file", PyCodeObject, co_filename);
    SHOW("code.first_line", PyCodeObject, co_firstlineno);
#if PY_VERSION_HEX >= 0x030a0000
    SHOW("code.line_table", PyCodeObject, co_linetable);
#else
    SHOW("code.line_table", PyCodeObject, co_lnotab);
#endif

    SHOW("string.length", PyASCIIObject, length);
    SHOW("string.state", PyASCIIObject, state);
    printf("string.ascii_data %zu\n", sizeof(PyASCIIObject));
    printf("string.compact_data %zu\n", sizeof(PyCompactUnicodeObject));
    SHOW_BITS("state.kind", kind);
    SHOW_BITS("state.compact", compact);
    SHOW_BITS("state.ascii", ascii);
    SHOW("bytes.size", PyVarObject, ob_size);
    SHOW("bytes.data", PyBytesObject, ob_sval);

    SHOW("runtime.interpreters_head", _PyRuntimeState, interpreters.head);
    SHOW("runtime.interpreters_main", _PyRuntimeState, interpreters.main);
    SHOW("runtime.interpreter_next", PyInterpreterState, next);
#if PY_VERSION_HEX >= 0x030b0000
    SHOW("runtime.threads_head", PyInterpreterState, threads.head);
#else
    SHOW("runtime.threads_head", PyInterpreterState, tstate_head);
#endif
#if PY_VERSION_HEX >= 0x030c0000
    SHOW("runtime.thread_state_pointer", _PyRuntimeState, _main_interpreter._gil.last_holder);
    SHOW("runtime.gil_last_holder", PyInterpreterState, _gil.last_holder);
    SHOW("pools.obmalloc", PyInterpreterState, obmalloc);
    SHOW("pools.arenas", struct _obmalloc_state, mgmt.arenas);
    printf("pools.arena_size %d\npools.pool_size %d\n", (int)ARENA_SIZE, (int)POOL_SIZE);
#else
    SHOW("runtime.thread_state_pointer", _PyRuntimeState, gilstate.tstate_current);
#endif
#if PY_VERSION_HEX >= 0x030d0000
    PUBLISHED("runtime_size", runtime_state.size);
    PUBLISHED("runtime_interpreters_head", runtime_state.interpreters_head);
    PUBLISHED("interpreter_size", interpreter_state.size);
    PUBLISHED("interpreter_next", interpreter_state.next);
    PUBLISHED("interpreter_threads_head", interpreter_state.threads_head);
    PUBLISHED("interpreter_gil_last_holder", interpreter_state.gil_runtime_state_holder);
    PUBLISHED("thread_state_size", thread_state.size);
    PUBLISHED("thread_state_next", thread_state.next);
    PUBLISHED("thread_state_interpreter", thread_state.interp);
    PUBLISHED("thread_state_frame", thread_state.current_frame);
    PUBLISHED("thread_state_thread_id", thread_state.thread_id);
    PUBLISHED("thread_state_native_thread_id", thread_state.native_thread_id);
    PUBLISHED("frame_size", interpreter_frame.size);
    PUBLISHED("frame_previous", interpreter_frame.previous);
    PUBLISHED("frame_code", interpreter_frame.executable);
    PUBLISHED("frame_instruction", interpreter_frame.instr_ptr);
    PUBLISHED("frame_owner", interpreter_frame.owner);
    PUBLISHED("code_size", code_object.size);
    PUBLISHED("code_file", code_object.filename);
    PUBLISHED("code_name", code_object.name);
    PUBLISHED("code_qualified_name", code_object.qualname);
    PUBLISHED("code_line_table", code_object.linetable);
    PUBLISHED("code_first_line", code_object.firstlineno);
    PUBLISHED("code_start", code_object.co_code_adaptive);
    PUBLISHED("bytes_object_size", bytes_object.size);
    PUBLISHED("bytes_size", bytes_object.ob_size);
    PUBLISHED("bytes_data", bytes_object.ob_sval);
    PUBLISHED("string_state", unicode_object.state);
    PUBLISHED("string_length", unicode_object.length);
    PUBLISHED("string_ascii_data", unicode_object.asciiobject_size);
    printf("published.size %zu\n", sizeof(struct _Py_DebugOffsets));
#endif
    return 0;
}
