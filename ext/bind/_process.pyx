"""A program that makes a namespace, and the first process in it. Binding of lay_process.

See _process.pyi for what is promised. A process is started and ended inside one call each, into which no Python
function enters, so no interrupt loses one.
"""
cimport lay
from libc.stdlib cimport free, malloc

cdef extern from "process/process.h" nogil:
    ctypedef struct lay_process
    int LAY_PROCESS_NONE, LAY_PROCESS_CONTROL, LAY_PROCESS_GONE
    lay.lay_code lay_process_start(lay_process **out, const char *program, const char *const *argv, const int *fds, size_t n, lay.lay_error *err) noexcept
    int lay_process_control(const lay_process *p) noexcept
    int lay_process_ended(const lay_process *p) noexcept
    lay.lay_code lay_process_next(lay_process *p, int *what, int *value, lay.lay_error *err) noexcept
    void lay_process_go(lay_process *p) noexcept
    void lay_process_end(lay_process *p) noexcept
    void lay_process_free(lay_process *p) noexcept

NONE, CONTROL, GONE = LAY_PROCESS_NONE, LAY_PROCESS_CONTROL, LAY_PROCESS_GONE


cdef class Process:
    cdef lay_process *process

    def __cinit__(self, bytes program not None, list argv not None, fds):
        cdef lay.lay_error err
        cdef lay.lay_code code
        cdef bytes numbers = lay.descriptors(fds)
        cdef const int *array = <const int *><const char *>numbers
        cdef size_t n = <size_t>len(numbers) // sizeof(int), i
        cdef const char **pointers = <const char **>malloc((<size_t>len(argv) + 1) * sizeof(char *))
        cdef const char *name = program
        if pointers == NULL:
            raise MemoryError
        try:
            for i in range(<size_t>len(argv)):
                pointers[i] = <bytes?>argv[i]
            pointers[len(argv)] = NULL
            with nogil:
                code = lay_process_start(&self.process, name, pointers, array, n, &err)
            lay.check(code, &err)
        finally:
            free(<void *>pointers)

    def __dealloc__(self):
        with nogil:
            lay_process_free(self.process)

    @property
    def control(self):
        return lay_process_control(self.process)

    @property
    def ended(self):
        return lay_process_ended(self.process)

    def next(self):
        cdef lay.lay_error err
        cdef int what = 0, value = 0
        lay.check(lay_process_next(self.process, &what, &value, &err), &err)     # never waits
        return what, value

    def go(self):
        lay_process_go(self.process)

    def end(self):
        with nogil:
            lay_process_end(self.process)
