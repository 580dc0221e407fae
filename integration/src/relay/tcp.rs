//! Streams across a link: each accepted connection gets one to the far side, and a reader and a writer
//! for each direction.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::Result;

use super::lane::Lane;
use super::{POLL, Traffic};

/// One piece on the link: long enough to be cheap, short enough not to be seen in the rate.
const PIECE: usize = 32 << 10;

pub fn relay(traffic: Traffic, to: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    thread::spawn(move || {
        while !traffic.link.ended() {
            match listener.accept() {
                // Nobody there: the dialer sees a connection that ends at once.
                Ok((near, _)) => drop(join(&traffic, near, to)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(POLL / 50),
                Err(_) => return,
            }
        }
    });
    Ok(address)
}

fn join(traffic: &Traffic, near: TcpStream, to: SocketAddr) -> Result<()> {
    let far = TcpStream::connect(to)?;
    near.set_nonblocking(false)?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(POLL))?;
    }
    let ends = [
        (traffic.clone(), near.try_clone()?, far.try_clone()?),
        (traffic.reverse(), far, near),
    ];
    for (traffic, from, to) in ends {
        let lane = Arc::new(Lane::default());
        let (reading, filled) = (traffic.clone(), lane.clone());
        let both = [from.try_clone()?, to.try_clone()?];
        thread::spawn(move || read(&reading, from, &filled));
        thread::spawn(move || {
            if !write(&traffic, to, &lane) {
                // Nobody takes anything any more: the sender learns it, as from a reset.
                for stream in both {
                    let _ = stream.shutdown(Shutdown::Both);
                }
            }
        });
    }
    Ok(())
}

/// An empty piece is the end of the stream: it arrives in order, as all that came before it.
type Piece = Box<[u8]>;

fn read(traffic: &Traffic, mut from: TcpStream, lane: &Lane<Piece>) {
    let mut buffer = vec![0; PIECE];
    loop {
        let bytes = match from.read(&mut buffer) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                match traffic.link.ended() {
                    true => return,
                    false => continue,
                }
            }
            Err(_) => 0,
        };
        let Some(due) = traffic.link.admit_stream(traffic.way, bytes) else {
            return;
        };
        if !lane.put(&traffic.link, due, bytes, buffer[..bytes].into()) || bytes == 0 {
            return;
        }
    }
}

/// True: delivered to the end of the stream.
fn write(traffic: &Traffic, mut to: TcpStream, lane: &Lane<Piece>) -> bool {
    while let Some((bytes, piece)) = lane.take(&traffic.link) {
        if !Lane::<Piece>::wait_healed(&traffic.link) {
            break;
        }
        if bytes == 0 {
            let _ = to.shutdown(Shutdown::Write);
            return true;
        }
        // Whoever has it finds it counted.
        traffic.arrived(bytes);
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    false
}
