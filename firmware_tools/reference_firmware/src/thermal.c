#include "thermal.h"

#include "bytes.h"
#include "log.h"

/* Each stage is entered at one temperature and left at a lower one, or the clock would flutter between two. */
struct stage {
    int32_t enter_millicelsius;
    int32_t leave_millicelsius;
    uint32_t throttle;
};

static const struct stage STAGES[] = {
    {INT32_MIN, INT32_MIN, 0},
    {95000, 90000, 2},
    {98000, 94000, 4},
    {101000, 97000, 6},
    /* Critical: an eighth of the work is the least that the throttle allows. */
    {105000, 100000, 7},
};
#define LAST_STAGE (ELEMENTS(STAGES) - 1)

static struct sensor_readings readings;
static uint32_t stage;
static uint32_t updates;

static uint32_t next_stage(uint32_t current, int32_t millicelsius)
{
    while (current < LAST_STAGE && millicelsius >= STAGES[current + 1].enter_millicelsius) {
        current++;
    }
    while (current > 0 && millicelsius < STAGES[current].leave_millicelsius) {
        current--;
    }
    return current;
}

static void change_stage(uint32_t next)
{
    uint32_t level = next == LAST_STAGE ? NPU_LOG_LEVEL_ERROR : NPU_LOG_LEVEL_WARNING;

    LOG_WRITE(level, "throttle %u -> %u at %d millicelsius", STAGES[stage].throttle, STAGES[next].throttle,
              (uint32_t)readings.millicelsius);
    stage = next;
    sensors_set_throttle(STAGES[stage].throttle);
}

void thermal_tick(void)
{
    uint32_t next;

    readings = sensors_read();
    next = next_stage(stage, readings.millicelsius);
    if (next != stage) {
        change_stage(next);
    }
    sensors_publish(&readings);
    updates++;
}

const struct sensor_readings *thermal_readings(void)
{
    return &readings;
}

uint32_t thermal_throttle(void)
{
    return STAGES[stage].throttle;
}

uint32_t thermal_updates(void)
{
    return updates;
}
