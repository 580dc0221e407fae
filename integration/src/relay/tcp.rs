//! Streams across a link: each accepted connection gets one to the far side, and a reader and a writer
//! for each direction.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::Result;

use super::lane::Lane;
use super::{POLL, Shared, Way};

/// One piece on the link: long enough to be cheap, short enough not to be seen in the rate.
const PIECE: usize = 32 << 10;

pub fn relay(link: Arc<Shared>, way: Way, to: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    thread::spawn(move || {
        while !link.ended() {
            match listener.accept() {
                // Nobody there: the dialer sees a connection that ends at once.
                Ok((near, _)) => drop(join(&link, way, near, to)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(POLL / 50),
                Err(_) => return,
            }
        }
    });
    Ok(address)
}

fn join(link: &Arc<Shared>, way: Way, near: TcpStream, to: SocketAddr) -> Result<()> {
    let far = TcpStream::connect(to)?;
    near.set_nonblocking(false)?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(POLL))?;
    }
    let ends = [
        (way, near.try_clone()?, far.try_clone()?),
        (way.reverse(), far, near),
    ];
    for (way, from, to) in ends {
        let lane = Arc::new(Lane::default());
        let (reading, writing) = ((link.clone(), lane.clone()), (link.clone(), lane));
        thread::spawn(move || read(&reading.0, way, from, &reading.1));
        thread::spawn(move || write(&writing.0, way, to, &writing.1));
    }
    Ok(())
}

/// An empty piece is the end of the stream: it arrives in order, as all that came before it.
type Piece = Box<[u8]>;

fn read(link: &Shared, way: Way, mut from: TcpStream, lane: &Lane<Piece>) {
    let mut buffer = vec![0; PIECE];
    loop {
        let bytes = match from.read(&mut buffer) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                match link.ended() {
                    true => return,
                    false => continue,
                }
            }
            Err(_) => 0,
        };
        let Some(due) = link.admit_stream(way, bytes) else {
            return;
        };
        if !lane.put(link, due, bytes, buffer[..bytes].into()) || bytes == 0 {
            return;
        }
    }
}

fn write(link: &Shared, way: Way, mut to: TcpStream, lane: &Lane<Piece>) {
    while let Some((bytes, piece)) = lane.take(link) {
        if !Lane::<Piece>::wait_healed(link) {
            break;
        }
        if bytes == 0 {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        if to.write_all(&piece).is_err() {
            break;
        }
        link.arrived(way, bytes);
    }
    let _ = to.shutdown(Shutdown::Both);
}
