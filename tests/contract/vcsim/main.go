// Serves vcsim, govmomi's vCenter simulator, over TLS on 127.0.0.1 until its standard input ends.
//
// Its inventory is one datacentre with a cluster of one host, without datastores and VMs: the tests add theirs
// through the API. Prints one line of JSON when it serves: {"url"}.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/url"
	"os"

	"github.com/vmware/govmomi/simulator"
)

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address and port")
	certificate := flag.String("certificate", "", "PEM file")
	key := flag.String("key", "", "PEM file")
	user := flag.String("user", "", "the only user")
	calls := flag.String("calls", "", "file that gets every request and answer")
	flag.Parse()

	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	must(err)
	simulator.TraceFile, err = os.Create(*calls)
	must(err)
	simulator.Trace = true

	model := simulator.VPX()
	// One host: a second mount of a NAS datastore replaces the first one and forgets its VMs.
	model.Host, model.ClusterHost, model.Datastore, model.Machine = 0, 1, 0, 0
	defer model.Remove()
	must(model.Create())
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	model.Service.Listen = &url.URL{Host: *listen, User: url.UserPassword(*user, os.Getenv("VCSIM_PASSWORD"))}
	server := model.Service.NewServer()
	must(json.NewEncoder(os.Stdout).Encode(map[string]string{"url": "https://" + server.URL.Host + server.URL.Path}))
	_, _ = io.Copy(io.Discard, os.Stdin)
	server.Close()
}
