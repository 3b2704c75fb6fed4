// What the pods of the bed's own image run. Without an argument it does nothing until it is told to end, as the pause
// container of every pod must, and reaps the orphans of its pod.
//
//	pod                  wait
//	pod serve PORT...    answer every TCP connection with the name of the host
//	pod lookup NAME      print the addresses of NAME, one a line
//	pod dial HOST:PORT   print what a TCP connection says
//	pod reach HOST:PORT  say whether a TCP connection is accepted
//	pod try HOST:PORT... say of each, one a line, whether it was reached, else why not
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	patience = 5 * time.Second
	// Of `try`: one that is dropped is not answered, and the first packet is sent again after a second.
	short = 2 * time.Second
)

func main() {
	switch arguments := os.Args[1:]; {
	case len(arguments) == 0:
		wait()
	case len(arguments) >= 2 && arguments[0] == "serve":
		go endWhenTold()
		for _, port := range arguments[2:] {
			go func() { fail(serve(port)) }()
		}
		fail(serve(arguments[1]))
	case len(arguments) == 2 && arguments[0] == "lookup":
		addresses, err := net.LookupHost(arguments[1])
		fail(err)
		for _, address := range addresses {
			fmt.Println(address)
		}
	case len(arguments) == 2 && arguments[0] == "dial":
		fail(dial(arguments[1]))
	case len(arguments) == 2 && arguments[0] == "reach":
		connection, err := net.DialTimeout("tcp", arguments[1], patience)
		fail(err)
		connection.Close()
		fmt.Println("reached")
	case len(arguments) >= 2 && arguments[0] == "try":
		try(arguments[1:])
	default:
		fail(fmt.Errorf("pod [serve PORT... | lookup NAME | dial HOST:PORT | reach HOST:PORT | try HOST:PORT...], not %q",
			arguments))
	}
}

func wait() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

// The first process of a container has no default action for signals.
func endWhenTold() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	<-signals
	os.Exit(0)
}

func serve(port string) error {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		fmt.Fprintln(connection, name)
		connection.Close()
	}
}

func dial(address string) error {
	connection, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return err
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, connection)
	return err
}

// All at once, as one that is dropped takes its time.
func try(addresses []string) {
	said := make([]chan string, len(addresses))
	for i, address := range addresses {
		said[i] = make(chan string, 1)
		go func() {
			connection, err := net.DialTimeout("tcp", address, short)
			if err != nil {
				said[i] <- err.Error()
				return
			}
			connection.Close()
			said[i] <- "reached"
		}()
	}
	for i, address := range addresses {
		fmt.Println(address, <-said[i])
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "pod:", err)
		os.Exit(1)
	}
}
