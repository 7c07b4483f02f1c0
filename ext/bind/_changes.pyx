"""Differences between trees. Binding of lay_changes and of the tree verbs the drivers need.

See _changes.pyi for what is promised. A Changes never changes, so any number of threads may read it.
"""
cimport lay
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t

import os

cdef extern from "Python.h":
    str PyUnicode_DecodeFSDefaultAndSize(const char *s, Py_ssize_t size)


cdef class Changes:
    cdef lay.lay_changes *c

    def __init__(self):
        raise TypeError("a Changes is made by compare_trees, compare_overlay or compare_stacks")

    def __dealloc__(self):
        lay.lay_changes_free(self.c)         # microseconds: not worth a wait for the GIL

    def __len__(self):
        return lay.lay_changes_count(self.c)

    def _capsule(self):
        """For export_changes, while it keeps this object."""
        return PyCapsule_New(self.c, "layerstore.changes", NULL)

    def to_list(self, change_type, kinds):
        cdef const char *path = NULL
        cdef size_t i, n = 0
        cdef int kind
        cdef tuple kind_of = tuple(kinds)
        cdef list made = []
        new = tuple.__new__
        for i in range(lay.lay_changes_count(self.c)):
            kind = lay.lay_changes_at(self.c, i, &path, &n)
            made.append(new(change_type, (PyUnicode_DecodeFSDefaultAndSize(path, <Py_ssize_t>n), kind_of[kind])))
        return made


cdef Changes owned(lay.lay_changes *c):
    cdef Changes changes = Changes.__new__(Changes)
    changes.c = c
    return changes


def compare_trees(int new_fd, int old_fd=-1, *, bint attributes=False, bint touched=False, bint contents=False):
    cdef lay.lay_error err
    cdef lay.lay_changes *c = NULL
    cdef unsigned flags = (lay.LAY_CHANGES_ATTRIBUTES if attributes else 0) | (lay.LAY_CHANGES_TOUCHED if touched else 0)
    flags |= lay.LAY_CHANGES_CONTENTS if contents else 0
    with nogil:
        lay.check(lay.lay_changes_trees(&c, new_fd, old_fd, flags, &err), &err)
    return owned(c)


def compare_overlay(upper_fds, lower_fds, bint userxattr=False, *, bint contents=False):
    cdef lay.lay_error err
    cdef lay.lay_changes *c = NULL
    cdef unsigned flags = (lay.LAY_CHANGES_USERXATTR if userxattr else 0) | (lay.LAY_CHANGES_CONTENTS if contents else 0)
    cdef lay.lay_code code
    cdef list kept = []
    cdef bytes uppers = lay.shown(upper_fds, kept), lowers = lay.shown(lower_fds, kept)
    cdef const char *upper = uppers
    cdef const char *lower = lowers
    cdef size_t n = len(upper_fds), m = len(lower_fds)
    with nogil:
        code = lay.lay_changes_overlay(&c, <const lay.lay_shown *>upper, n, <const lay.lay_shown *>lower, m, flags, &err)
    lay.check_shown(code, &err, kept)
    return owned(c)


def compare_stacks(new_fds, old_fds, *, bint userxattr=False, bint old_userxattr=False, bint contents=False):
    cdef lay.lay_error err
    cdef lay.lay_changes *c = NULL
    cdef unsigned flags = (lay.LAY_CHANGES_USERXATTR if userxattr else 0) | (lay.LAY_CHANGES_CONTENTS if contents else 0)
    flags |= lay.LAY_CHANGES_OLD_USERXATTR if old_userxattr else 0
    cdef lay.lay_code code
    cdef list kept = []
    cdef bytes fresh = lay.shown(new_fds, kept), before = lay.shown(old_fds, kept)
    cdef const char *new = fresh
    cdef const char *old = before
    cdef size_t n = len(new_fds), m = len(old_fds)
    with nogil:
        code = lay.lay_changes_stacks(&c, <const lay.lay_shown *>new, n, <const lay.lay_shown *>old, m, flags, &err)
    lay.check_shown(code, &err, kept)
    return owned(c)


def tree_size(int root_fd):
    cdef lay.lay_error err
    cdef int64_t size = 0
    with nogil:
        lay.check(lay.lay_tree_size(root_fd, &size, &err), &err)
    return size


def set_project(int root_fd, unsigned project):
    cdef lay.lay_error err
    with nogil:
        lay.check(lay.lay_tree_set_project(root_fd, project, &err), &err)


cdef class Blocks:
    cdef lay.Handle handle

    def __cinit__(self, bint freed=False):
        cdef lay.lay_error err
        lay.check(lay.lay_blocks_open(<lay.lay_blocks **>&self.handle.c, freed, &err), &err)

    def __dealloc__(self):
        lay.lay_blocks_free(<lay.lay_blocks *>self.handle.c)

    def add(self, int root_fd):
        cdef lay.lay_error err
        cdef lay.lay_code code
        cdef int64_t bytes = 0
        lay.enter(&self.handle)
        with nogil:
            code = lay.lay_blocks_add(<lay.lay_blocks *>self.handle.c, root_fd, &bytes, &err)
        lay.give(&self.handle)
        lay.check(code, &err)
        return bytes


def stack_size(fds, bint userxattr=False):
    cdef lay.lay_error err
    cdef int64_t size = 0
    cdef lay.lay_code code
    cdef list kept = []
    cdef bytes array = lay.shown(fds, kept)
    cdef const char *p = array
    cdef size_t n = len(fds)
    cdef unsigned flags = lay.LAY_STACK_USERXATTR if userxattr else 0
    with nogil:
        code = lay.lay_stack_size(<const lay.lay_shown *>p, n, flags, &size, &err)
    lay.check_shown(code, &err, kept)
    return size


def remove_tree(int parent_fd, name):
    cdef lay.lay_error err
    cdef bytes encoded = os.fsencode(name)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    cdef const char *p = encoded
    with nogil:
        lay.check(lay.lay_tree_remove(parent_fd, p, &err), &err)
