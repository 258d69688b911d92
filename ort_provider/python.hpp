// The Python that this process runs: what is called of it, found when the library is loaded, so that no headers of it
// are needed and one library serves all its versions. All names are of Python's stable ABI.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <utility>

#include "ort.hpp"

struct PyObject;

#define PYTHON_FUNCTIONS(X)                                              \
    X(int, Py_IsInitialized, ())                                         \
    X(int, PyGILState_Ensure, ())                                        \
    X(void, PyGILState_Release, (int))                                   \
    X(void, Py_DecRef, (PyObject *))                                     \
    X(PyObject *, PyImport_ImportModule, (const char *))                 \
    X(PyObject *, PyObject_GetAttrString, (PyObject *, const char *))    \
    X(PyObject *, PyObject_Str, (PyObject *))                            \
    X(PyObject *, PyObject_CallMethod, (PyObject *, const char *, const char *, ...)) \
    X(void, PyErr_Fetch, (PyObject **, PyObject **, PyObject **))        \
    X(void, PyErr_NormalizeException, (PyObject **, PyObject **, PyObject **)) \
    X(int, PyErr_GivenExceptionMatches, (PyObject *, PyObject *))        \
    X(void, PyErr_Clear, ())                                             \
    X(void, PyErr_SetInterrupt, ())                                      \
    X(const char *, PyUnicode_AsUTF8AndSize, (PyObject *, ptrdiff_t *))  \
    X(PyObject *, PyBytes_FromStringAndSize, (const char *, ptrdiff_t))  \
    X(PyObject *, PyMemoryView_FromMemory, (char *, ptrdiff_t, int))     \
    X(PyObject *, PyLong_FromLongLong, (long long))                      \
    X(long long, PyLong_AsLongLong, (PyObject *))                        \
    X(void *, PyLong_AsVoidPtr, (PyObject *))                            \
    X(PyObject *, PyTuple_New, (ptrdiff_t))                              \
    X(ptrdiff_t, PyTuple_Size, (PyObject *))                             \
    X(PyObject *, PyTuple_GetItem, (PyObject *, ptrdiff_t))              \
    X(int, PyTuple_SetItem, (PyObject *, ptrdiff_t, PyObject *))         \
    X(PyObject *, PyUnicode_FromString, (const char *))                  \
    X(PyObject *, PyDict_New, ())                                        \
    X(int, PyDict_SetItem, (PyObject *, PyObject *, PyObject *))         \
    X(PyObject *, Py_BuildValue, (const char *, ...))

namespace python {

struct Functions {
#define DECLARE(type, name, arguments) type(*name) arguments;
    PYTHON_FUNCTIONS(DECLARE)
#undef DECLARE
};

inline Functions py{};
inline PyObject **keyboard_interrupt = nullptr;

template <class Symbol>
void find(Symbol &symbol, const char *name)
{
    symbol = reinterpret_cast<Symbol>(dlsym(RTLD_DEFAULT, name));
    if (!symbol) {
        throw Failure(std::string("this process runs no Python, which the provider is for: ") + name + " is missing");
    }
}

inline void find_all()
{
#define FIND(type, name, arguments) find(py.name, #name);
    PYTHON_FUNCTIONS(FIND)
#undef FIND
    find(keyboard_interrupt, "PyExc_KeyboardInterrupt");
}

// Whether Python can be called: no longer once its interpreter is being taken down, as sessions may be that it held.
inline bool is_alive() { return py.Py_IsInitialized && py.Py_IsInitialized(); }

// The interpreter's lock, held as long as this lives. A thread that holds it already may make another one.
class Lock {
public:
    Lock()
    {
        if (!is_alive()) {
            throw Failure("Python has ended, and the device was closed with it");
        }
        state_ = py.PyGILState_Ensure();
    }
    Lock(const Lock &) = delete;
    Lock &operator=(const Lock &) = delete;
    ~Lock()
    {
        if (is_alive()) {
            py.PyGILState_Release(state_);
        }
    }

private:
    int state_;
};

// A reference of our own; made and let go with the lock held. Once Python ends it is nobody's to let go.
class Object {
public:
    explicit Object(PyObject *object = nullptr) : object_(object) {}
    Object(Object &&other) noexcept : object_(other.release()) {}
    Object &operator=(Object &&other) noexcept
    {
        std::swap(object_, other.object_);
        return *this;
    }
    ~Object()
    {
        if (object_ && is_alive()) {
            py.Py_DecRef(object_);
        }
    }
    PyObject *get() const { return object_; }
    PyObject *release() { return std::exchange(object_, nullptr); }

private:
    PyObject *object_;
};

inline std::string text_of(PyObject *object)
{
    ptrdiff_t size = 0;
    const char *text = object ? py.PyUnicode_AsUTF8AndSize(object, &size) : nullptr;
    if (!text) {
        py.PyErr_Clear();
        return "an error of Python's that cannot be shown";
    }
    return {text, static_cast<size_t>(size)};
}

// The exception that is set, which this takes away, in words.
inline Failure raised()
{
    PyObject *parts[3] = {};
    py.PyErr_Fetch(&parts[0], &parts[1], &parts[2]);
    py.PyErr_NormalizeException(&parts[0], &parts[1], &parts[2]);
    const Object kind(parts[0]), error(parts[1]), trace(parts[2]);
    if (py.PyErr_GivenExceptionMatches(kind.get(), *keyboard_interrupt)) {
        py.PyErr_SetInterrupt();  // onnxruntime's error is not what Ctrl-C asks for: it comes again, in the caller
        return Failure("KeyboardInterrupt");
    }
    const Object name(py.PyObject_GetAttrString(kind.get(), "__name__"));
    const Object text(py.PyObject_Str(error.get()));
    return Failure(text_of(name.get()) + ": " + text_of(text.get()));
}

inline Object checked(PyObject *object)
{
    if (!object) {
        throw raised();
    }
    return Object(object);
}

template <class... Arguments>
Object call(const Object &target, const char *method, const char *format, Arguments... arguments)
{
    return checked(py.PyObject_CallMethod(target.get(), method, format, arguments...));
}

}  // namespace python
