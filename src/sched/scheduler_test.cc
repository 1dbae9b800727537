#include "sched/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace volley {
namespace {

// A world of requests whose answers are a function of the prompt alone: whatever the scheduler does
// (chunks, preemption, prefix hits, rejected drafts), the tokens must come out the same.
class Simulation {
 public:
  explicit Simulation(int seed) : rng_(seed), config_(random_config()), scheduler_(config_) {}

  void run(int num_steps) {
    for (int step = 0; step < num_steps; ++step) {
      if (rng_() % 4 == 0) arrive();
      if (rng_() % 40 == 0) cancel();
      if (rng_() % 40 == 0) restart();
      one_step();
      if (testing::Test::HasFatalFailure()) return;
    }
    for (int step = 0; !scheduler_.idle() && step < 100'000; ++step) one_step();
    ASSERT_TRUE(scheduler_.idle()) << "a request starved";
    ASSERT_EQ(scheduler_.pages().num_available(), config_.num_pages) << "pages leaked";
    ASSERT_EQ(num_finished_ + num_cancelled_, num_arrived_) << "a request was lost";
  }

  int64_t num_preemptions() const { return scheduler_.num_preemptions(); }
  int64_t num_cached() const { return num_cached_; }

 private:
  static constexpr int kMaxLen = 160;

  SchedulerConfig random_config() {
    const int max_num_seqs = 1 + rng_() % 6;
    const int max_output_rows = max_num_seqs * (1 + rng_() % 8);
    const int page_size = 8 << (rng_() % 2);
    const int one_sequence = (kMaxLen + page_size - 1) / page_size;
    return {.max_num_seqs = max_num_seqs,
            .max_queued = 12,
            .num_pages = one_sequence + static_cast<int>(rng_() % (2 * one_sequence)),
            .page_size = page_size,
            .max_rows = max_output_rows + static_cast<int>(rng_() % 32),
            .max_output_rows = max_output_rows,
            .prefix_caching = rng_() % 4 != 0};
  }

  // The token after `count` tokens of the stream `stream`.
  static int32_t token_at(int stream, size_t count) {
    uint32_t hash = static_cast<uint32_t>(count / 20 == 0 ? 0 : stream) * 2654435761u;
    hash ^= static_cast<uint32_t>(count) * 40503u;
    return static_cast<int32_t>((hash >> 13) % 1000);
  }

  void arrive() {
    const int stream = rng_() % 5;
    const size_t prompt_len = 1 + rng_() % 100;
    NewSequence added{.id = RequestId{next_id_++},
                      .priority = static_cast<int>(rng_() % 3),
                      .prefill_chunk = 1 + static_cast<int>(rng_() % 40),
                      .uses_drafter = rng_() % 2 == 0};
    for (size_t i = 0; i < prompt_len; ++i) added.prompt_ids.push_back(token_at(stream, i));
    const size_t goal = prompt_len + 1 + rng_() % (kMaxLen - prompt_len - 1);
    const RequestId id = added.id;
    const Result<ScheduledSequence*> sequence = scheduler_.add(std::move(added));
    if (!sequence) {
      ASSERT_EQ(sequence.error().kind, ErrorKind::kExhausted);
      ASSERT_GE(scheduler_.num_waiting(), config_.max_queued);
      return;
    }
    ++num_arrived_;
    live_[static_cast<uint64_t>(id)] = {stream, goal, *sequence};
  }

  void cancel() {
    if (live_.empty()) return;
    auto it = live_.begin();
    std::advance(it, rng_() % live_.size());
    ASSERT_TRUE(scheduler_.remove(RequestId{it->first}));
    ASSERT_FALSE(scheduler_.remove(RequestId{it->first}));
    live_.erase(it);
    ++num_cancelled_;
  }

  // One that goes on with its drafter, or without.
  void restart() {
    if (live_.empty()) return;
    auto it = live_.begin();
    std::advance(it, rng_() % live_.size());
    ScheduledSequence& sequence = *it->second.scheduled;
    if (sequence.runs) scheduler_.restart(sequence);
    sequence.uses_drafter = !sequence.uses_drafter;
    ASSERT_EQ(sequence.num_computed, 0);
  }

  void one_step() {
    const StepPlan plan = scheduler_.plan([&](const ScheduledSequence& sequence) {
      const auto goal = static_cast<int64_t>(live_.at(static_cast<uint64_t>(sequence.id)).goal);
      return static_cast<int>(std::min<int64_t>(rng_() % 9, goal - sequence.num_tokens() - 1));
    });
    if (scheduler_.idle()) {
      ASSERT_TRUE(plan.items.empty());
      return;
    }
    ASSERT_FALSE(plan.items.empty());
    int rows = 0;
    int outputs = 0;
    std::set<uint64_t> seen;
    for (const PlannedItem& item : plan.items) {
      rows += item.num_known + item.num_drafts;
      outputs += item.samples ? 1 + item.num_drafts : 0;
      ASSERT_TRUE(seen.insert(static_cast<uint64_t>(item.sequence->id)).second);
      const int64_t end = item.sequence->num_computed + item.num_known + item.num_drafts;
      ASSERT_EQ(item.sequence->pages.pages_missing(end, scheduler_.pages()), 0);
    }
    ASSERT_LE(rows, config_.max_rows);
    ASSERT_LE(outputs, config_.max_output_rows);
    ASSERT_LE(scheduler_.num_running(), config_.max_num_seqs);
    for (const PlannedItem& item : plan.items) finish_item(item);
  }

  void finish_item(const PlannedItem& item) {
    ScheduledSequence& sequence = *item.sequence;
    const auto key = static_cast<uint64_t>(sequence.id);
    const auto& [stream, goal, scheduled] = live_.at(key);
    ASSERT_EQ(scheduled, &sequence);
    ASSERT_TRUE(sequence.runs);
    std::vector<int32_t> fresh;
    if (item.samples) {
      const int accepted = item.num_drafts > 0 ? rng_() % (item.num_drafts + 1) : 0;
      for (int i = 0; i <= accepted; ++i) {
        fresh.push_back(token_at(stream, sequence.tokens.size() + i));
      }
    }
    const int num_right = item.num_known + static_cast<int>(fresh.size()) - (item.samples ? 1 : 0);
    if (sequence.uses_drafter && rng_() % 3 > 0) {
      sequence.num_injected = sequence.num_computed + num_right;
    }
    scheduler_.commit(sequence, num_right, fresh);
    for (size_t i = 0; i < sequence.tokens.size(); ++i) {
      ASSERT_EQ(sequence.tokens[i], token_at(stream, i));
    }
    if (sequence.tokens.size() < goal) return;
    ASSERT_EQ(sequence.tokens.size(), goal);
    num_cached_ += sequence.num_cached;
    scheduler_.remove(sequence.id);
    live_.erase(key);
    ++num_finished_;
  }

  struct Live {
    int stream = 0;
    size_t goal = 0;
    ScheduledSequence* scheduled = nullptr;
  };

  std::mt19937 rng_;
  SchedulerConfig config_;
  Scheduler scheduler_;
  std::map<uint64_t, Live> live_;
  uint64_t next_id_ = 1;
  int num_arrived_ = 0;
  int num_finished_ = 0;
  int num_cancelled_ = 0;
  int64_t num_cached_ = 0;
};

// A million steps of random arrivals, cancels, full pools and acceptances.
TEST(Scheduler, RandomWorldsBySeed) {
  int64_t preemptions = 0;
  int64_t cached = 0;
  for (int seed = 0; seed < 1000; ++seed) {
    Simulation simulation(seed);
    simulation.run(1000);
    ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
    preemptions += simulation.num_preemptions();
    cached += simulation.num_cached();
  }
  EXPECT_GT(preemptions, 100);
  EXPECT_GT(cached, 1000);
}

TEST(Scheduler, UrgentFirstAndPreemptionRecovers) {
  Scheduler scheduler(
      {.max_num_seqs = 2, .num_pages = 4, .page_size = 8, .max_rows = 64, .max_output_rows = 2});
  const auto add = [&](uint64_t id, int length, int priority) {
    ASSERT_TRUE(scheduler.add({.id = RequestId{id},
                               .prompt_ids = std::vector<int32_t>(length, static_cast<int>(id)),
                               .priority = priority}));
  };
  const auto no_drafts = [](const ScheduledSequence&) { return 0; };
  add(1, 15, 0);
  add(2, 15, 5);
  StepPlan plan = scheduler.plan(no_drafts);
  ASSERT_EQ(plan.items.size(), 2u);
  EXPECT_EQ(plan.items[0].sequence->id, RequestId{2});
  // Both grow past their pages: the less urgent one gives way.
  bool preempted = false;
  for (int step = 0; step < 12 && !preempted; ++step) {
    for (const PlannedItem& item : plan.items) {
      const int32_t fresh[] = {7};
      scheduler.commit(*item.sequence, item.num_known, fresh);
    }
    plan = scheduler.plan(no_drafts);
    if (!plan.preempted.empty()) {
      EXPECT_EQ(plan.preempted, std::vector<RequestId>{RequestId{1}});
      preempted = true;
    }
  }
  EXPECT_TRUE(preempted);
  scheduler.remove(RequestId{2});
  plan = scheduler.plan(no_drafts);
  ASSERT_EQ(plan.items.size(), 1u);
  // Its cached first page is not computed again.
  EXPECT_GE(plan.items[0].sequence->num_computed, 8);
}

}  // namespace
}  // namespace volley
