// Which arrays an operator of Jittor may use: compile.py adds this to the operators' sources. Jittor takes memory from a
// pool, so that the bounds of an allocation would say little.
#pragma once
#include "fused_op.h"

extern "C" {
// The operator that begins may use `size` bytes at `p`, until standin_end; `made`: nothing has been written there.
void standin_array(const void* p, size_t size, bool made);
void standin_end();
}

template <class Operator>
void standin_begin(Operator* op) {
    for (jittor::Var* x : op->inputs()) standin_array(x->mem_ptr, x->size, false);
    for (jittor::Var* x : op->outputs()) standin_array(x->mem_ptr, x->size, true);
}

template <>
inline void standin_begin(jittor::FusedOp* op) {
    for (int type : {0, 1, 2})  // inputs, what only the operator sees, outputs
        for (jittor::VarInfo& x : op->vars)
            if (x.type == type) standin_array(x.var->mem_ptr, x.var->size, type == 2);
}
