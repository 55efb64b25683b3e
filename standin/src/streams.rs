//! Streams and events.

use std::ffi::{c_int, c_uint, c_void};

use crate::codes::Code;
use crate::failures::Kind;
use crate::put;
use crate::rules;
use crate::sabotage::Call;
use crate::schedule::Goal;
use crate::world::{Event, FIRST_HANDLE, Stream, Work, World, call};

const NON_BLOCKING: c_uint = 1;
const DISABLE_TIMING: c_uint = 2;
const INTERPROCESS: c_uint = 4;

fn create(world: &mut World, place: *mut usize, flags: c_uint) -> Result<(), Code> {
    let device = world.current_device()?;
    match flags {
        NON_BLOCKING => {}
        0 => return Err(world.unknown("a stream that waits for the default stream is not modelled")),
        _ => return Err(world.breaks(rules::STREAM_FLAGS, &format!("a stream with the flags {flags}"))),
    }
    if world.config.failures.strike(Kind::Stream) {
        return Err(Code::OUT_OF_MEMORY);
    }
    let handle = world.new_handle();
    world.streams.insert(handle, Stream { device, queue: Default::default(), destroyed: false });
    put(place, handle)
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(place: *mut usize, flags: c_uint) -> c_int {
    call(|world| create(world, place, flags))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreateWithPriority(place: *mut usize, flags: c_uint, _priority: c_int) -> c_int {
    call(|world| create(world, place, flags))
}

/// The work that is left is still done, as CUDA has it.
#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: usize) -> c_int {
    call(|world| {
        let Some(found) = world.streams.get_mut(&stream).filter(|found| stream >= FIRST_HANDLE && !found.destroyed)
        else {
            return Err(world.breaks(rules::STREAM_HANDLE, "a stream is destroyed that does not exist"));
        };
        found.destroyed = true;
        let (device, empty) = (found.device, found.queue.is_empty());
        if empty {
            world.streams.remove(&stream);
        }
        world.working(device).map(|_| ())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: usize) -> c_int {
    call(|world| {
        let stream = world.stream(stream)?;
        world.order.host_stream(stream);
        if world.config.sabotage.removes(Call::Host) {
            return Ok(());
        }
        world.drive(Goal::Stream(stream))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: usize) -> c_int {
    call(|world| {
        let stream = world.stream(stream)?;
        if world.config.sabotage.removes(Call::Host) {
            return Ok(());
        }
        world.run_ahead();
        if world.reached(Goal::Stream(stream)) { Ok(()) } else { Err(Code::NOT_READY) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, flags: c_uint) -> c_int {
    call(|world| {
        if flags != 0 {
            return Err(world.breaks(rules::WAIT_FLAGS, &format!("a wait with the flags {flags}")));
        }
        let stream = world.stream(stream)?;
        let number = world.event(event)?.recorded;
        if !world.config.sabotage.removes(Call::Wait) {
            world.enqueue(stream, Work::Wait { event, number });
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(stream: usize, status: *mut c_int) -> c_int {
    call(|world| {
        world.stream(stream)?;
        put(status, 0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(place: *mut usize, flags: c_uint) -> c_int {
    call(|world| {
        let device = world.current_device()?;
        if flags > 7 || flags & INTERPROCESS != 0 && flags & DISABLE_TIMING == 0 {
            return Err(world.breaks(rules::EVENT_FLAGS, &format!("an event with the flags {flags}")));
        }
        if world.config.failures.strike(Kind::Stream) {
            return Err(Code::OUT_OF_MEMORY);
        }
        let handle = world.new_handle();
        let timing = flags & DISABLE_TIMING == 0;
        world.timed_events += u64::from(timing);
        world.events.insert(handle, Event { device, timing, recorded: 0, done: 0, at: None, destroyed: false });
        put(place, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: usize) -> c_int {
    call(|world| {
        let event = world.event(event)?;
        event.destroyed = true;
        let device = event.device;
        world.working(device).map(|_| ())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: usize, stream: usize) -> c_int {
    call(|world| {
        let stream = world.stream(stream)?;
        let device = world.streams[&stream].device;
        let found = world.event(event)?;
        if found.device != device {
            return Err(world.breaks(rules::EVENT_CONTEXT, "an event is recorded in a stream of another device"));
        }
        found.recorded += 1;
        let number = found.recorded;
        world.enqueue(stream, Work::Record { event, number });
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: usize) -> c_int {
    call(|world| {
        let found = world.event(event)?;
        let (device, number) = (found.device, found.recorded);
        world.working(device)?;
        world.order.host_event(event);
        if world.config.sabotage.removes(Call::Host) {
            return Ok(());
        }
        world.drive(Goal::Event(event, number))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: usize) -> c_int {
    call(|world| {
        let found = world.event(event)?;
        let (device, number) = (found.device, found.recorded);
        world.working(device)?;
        if world.config.sabotage.removes(Call::Host) {
            return Ok(());
        }
        // Who asks again and again must see it happen at last.
        if world.schedule.random() % 8 == 0 {
            return world.drive(Goal::Event(event, number));
        }
        world.run_ahead();
        if world.reached(Goal::Event(event, number)) { Ok(()) } else { Err(Code::NOT_READY) }
    })
}

fn elapsed(world: &mut World, place: *mut f32, from: usize, to: usize) -> Result<(), Code> {
    let mut times = [None; 2];
    for (time, event) in times.iter_mut().zip([from, to]) {
        let found = world.event(event)?;
        if !found.timing || found.recorded == 0 {
            return Err(world.breaks(rules::EVENT_CLOCK, "the time of an event without a clock or a record"));
        }
        if found.done < found.recorded {
            return Err(Code::NOT_READY);
        }
        *time = found.at;
    }
    let [Some(from), Some(to)] = times else { return Err(Code::INVALID_HANDLE) };
    put(place, to.saturating_duration_since(from).as_secs_f32() * 1e3)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(place: *mut f32, from: usize, to: usize) -> c_int {
    call(|world| elapsed(world, place, from, to))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime_v2(place: *mut f32, from: usize, to: usize) -> c_int {
    call(|world| elapsed(world, place, from, to))
}

/// A function of the host's in a stream. It may not call the driver: the stand-in holds its lock while it runs.
#[unsafe(no_mangle)]
extern "C" fn cuLaunchHostFunc(
    stream: usize,
    function: Option<extern "C" fn(*mut c_void)>,
    data: *mut c_void,
) -> c_int {
    call(|world| {
        let stream = world.stream(stream)?;
        let function = function.ok_or(Code::INVALID_VALUE)?;
        let data = data as usize;
        let run = move || {
            function(data as *mut c_void);
            Ok(())
        };
        crate::libraries::enqueue(world, stream, run, Vec::new());
        Ok(())
    })
}
