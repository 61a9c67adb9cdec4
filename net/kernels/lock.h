// Python's interpreter lock. Declared here, so that the kernels can be compiled without Python's headers too.
#pragma once

extern "C" {
int PyGILState_Check();
struct _ts* PyEval_SaveThread();
void PyEval_RestoreThread(struct _ts*);
}

namespace film {

// Releases the lock, so that other Python threads work while this one computes; takes it back at the end of the scope.
class Unlocked {
    struct _ts* state;

public:
    explicit Unlocked(bool release) : state(release && PyGILState_Check() ? PyEval_SaveThread() : nullptr) {}
    Unlocked(const Unlocked&) = delete;
    ~Unlocked() {
        if (state) PyEval_RestoreThread(state);
    }
};

}  // namespace film
