// Threads that share the work inside one element: one leads, the others help where it has parts to give away.
//
// What a part writes no other part reads or writes, so results do not depend on who takes it, nor on how many there are.
#pragma once

#include <atomic>
#include <cstdint>

namespace convexlayers {

class Team {
public:
    explicit Team(int helpers) : helpers_(helpers) {}
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    // Calls work(0) ... work(parts - 1), in any order and by any member, and returns when all are done. By the leader;
    // work must not throw.
    template <class Work>
    void divide(std::int32_t parts, const Work& work) {
        if (helpers_ == 0 || parts < 2) {
            for (std::int32_t part = 0; part < parts; ++part) work(part);
            return;
        }
        run(parts, {[](const void* context, std::int32_t part) { (*static_cast<const Work*>(context))(part); }, &work});
    }

    // By a helper: works until the leader has left.
    void help();
    // By the leader, at the end.
    void leave() { closed_.store(true, std::memory_order_release); }

    // The team that the calling thread leads; one without helpers where it leads none.
    static Team& current();

    // Makes the calling thread the leader for a while.
    class Leading {
    public:
        explicit Leading(Team& team);
        ~Leading();
        Leading(const Leading&) = delete;
        Leading& operator=(const Leading&) = delete;

    private:
        Team& team_;
        Team* const before_;
    };

private:
    struct Task {
        void (*call)(const void* context, std::int32_t part);
        const void* context;
    };

    void run(std::int32_t parts, const Task& task);
    bool take_part();

    const int helpers_;
    std::atomic<bool> closed_{false};
    // Parts of the task in the high half, those taken in the low one. Who takes a part by exchanging this word has seen
    // the task of that part: the leader replaces it only when all parts are done.
    std::atomic<std::uint64_t> state_{0};
    std::atomic<std::uint32_t> done_{0};
    Task task_{};
};

}  // namespace convexlayers
